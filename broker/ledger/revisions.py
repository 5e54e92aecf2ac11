"""Which revision a ledger is at and which one this code wants: asked at each start, so by names.

Alembic, which carries the revisions out, takes longer to import than all that is done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from broker.ledger.engine import Ledger

SCRIPTS: Final = Path(__file__).with_name("migrations")
#: alembic's own table
_VERSIONS: Final = sa.table("alembic_version", sa.column("version_num", sa.String))


@dataclass(frozen=True, slots=True)
class Revisions:
    """Where a ledger is and where this code wants it."""

    current: str | None
    head: str

    @property
    def at_head(self) -> bool:
        """Whether the ledger fits this code."""
        return self.current == self.head


@cache
def head() -> str:
    """Return the newest revision this code knows: a revision's file begins with its number."""
    return max(file.name for file in (SCRIPTS / "versions").glob("[0-9]*.py")).partition("_")[0]


def revisions(ledger: Ledger) -> Revisions:
    """Compare a ledger with this code.

    Raises:
        LedgerUnavailable: the database is away.
    """
    with ledger.read() as connection:
        made = sa.inspect(connection).has_table(_VERSIONS.name)
        current = connection.scalar(sa.select(_VERSIONS.c.version_num)) if made else None
    return Revisions(current, head())


def check(ledger: Ledger) -> bool:
    """Tell whether the ledger is at the newest revision; False for an empty one."""
    return revisions(ledger).at_head
