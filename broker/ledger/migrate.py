"""The only one to know alembic: how a ledger gets to the newest revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from broker.errors import ConfigurationError
from broker.ledger.engine import Ledger
from broker.ledger.revisions import SCRIPTS, revisions

#: any number, the same in every process: PostgreSQL's name for "someone is migrating"
_LOCK: Final = 0x64726264


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did: nothing when both are the same."""

    before: str | None
    after: str


def config() -> Config:
    """Return alembic's configuration, made here so that no file needs to be found."""
    made = Config()
    made.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def upgrade(url: str) -> Upgraded:
    """Bring the ledger at ``url`` to the newest revision.

    A second call changes nothing; of two calls at once the later waits and finds nothing to do.

    Raises:
        LedgerUnavailable: the database is away.
        ConfigurationError: the ledger is newer than this code.
    """
    ledger = Ledger(url)
    try:
        before = revisions(ledger)
        if before.at_head:
            return Upgraded(before.current, before.head)
        scripts = ScriptDirectory.from_config(config())
        if before.current not in {None, *(one.revision for one in scripts.walk_revisions())}:
            raise ConfigurationError(
                f"The ledger is at revision {before.current}, which this version does not know; "
                "run the version of Drawbridge that made it, or a newer one",
            )
        with ledger.write() as connection:
            if ledger.dialect == "postgresql":
                # Building an index over a full table may take longer than a request may.
                connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            made = config()
            made.attributes["connection"] = connection
            command.upgrade(made, "head")
        return Upgraded(before.current, before.head)
    finally:
        ledger.close()
