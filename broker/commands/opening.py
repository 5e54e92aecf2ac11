"""The only one to know how a command opens the ledger, as whom, and what it says when it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger.engine import Ledger, parse_url
from broker.ledger.revisions import revisions
from broker.settings import StoreSettings

#: who does what a command does, as the audit says it
ACTOR: Final = "cli"


def source() -> str:
    """Say for the audit which user of this machine runs the command."""
    return f"uid {os.getuid()}"


@contextmanager
def said_where(url: str) -> Iterator[None]:
    """Say of an unreachable ledger which one it is, and what the database said.

    Raises:
        ConfigurationError: instead of ``LedgerUnavailable``, for a person can do something.
    """
    shown = parse_url(url).render_as_string(hide_password=True)
    try:
        yield
    except LedgerUnavailable as error:
        cause = error.__cause__
        reason = cause.orig if isinstance(cause, sa.exc.DBAPIError) else error.message
        raise ConfigurationError(
            f"The ledger {shown} cannot be used: {reason}; start it, or correct "
            "DRAWBRIDGE_DATABASE_URL",
        ) from error


@contextmanager
def opened(settings: StoreSettings) -> Iterator[Ledger]:
    """Open the ledger for a command that needs its tables.

    Raises:
        ConfigurationError: it is away, or its tables are not this version's.
    """
    with said_where(settings.database_url):
        ledger = Ledger(settings.database_url, synchronous=settings.sqlite_synchronous)
        try:
            found = revisions(ledger)
            if not found.at_head:
                raise ConfigurationError(
                    f"The ledger's tables are at revision {found.current}, this version needs "
                    f"{found.head}; run `drawbridge migrate`",
                )
            yield ledger
        finally:
            ledger.close()
