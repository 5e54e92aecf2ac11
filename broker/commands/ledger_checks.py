"""What ``drawbridge doctor`` asks of the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from broker.commands.findings import Finding, Level, age, ok, problem, skipped
from broker.commands.opening import said_where
from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger import outbox
from broker.ledger.credential_rows import state
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger, parse_url
from broker.ledger.queues import queue_names
from broker.ledger.revisions import revisions

#: clocks farther apart than this make times lie, and short leases too
OFFSET_MAX_S: Final = 2.0
#: an effect is told within a second; one that waits longer waits for somebody
OUTBOX_MAX_S: Final = 60.0
#: credentials looked at, newest first
CREDENTIALS_MAX: Final = 10_000
#: workers named in one line
NAMED_MAX: Final = 20

#: what can only be looked at in a ledger of this version
NEEDS_TABLES: Final = ("outbox", "parked", "credentials")


def reach(url: str, ledger: Ledger) -> Finding:
    """Look whether the ledger answers and has this version's tables."""
    shown = parse_url(url).render_as_string(hide_password=True)
    try:
        with said_where(url):
            found = revisions(ledger)
    except ConfigurationError as error:
        return problem("ledger", error.message, "Start it, or correct DRAWBRIDGE_DATABASE_URL.")
    if not found.at_head:
        return problem(
            "ledger",
            f"{shown} is at revision {found.current}, this version needs {found.head}.",
            "Run `drawbridge migrate`.",
        )
    return ok("ledger", f"{shown} answers, at revision {found.head}.")


def clock(ledger: Ledger) -> Finding:
    """Compare the ledger's clock with this machine's."""
    if ledger.dialect == "sqlite":
        return ok("ledger clock", "SQLite has this machine's clock.")
    asked = time.time()
    try:
        with ledger.read() as conn:
            theirs: datetime = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    except LedgerUnavailable:
        return skipped("ledger clock", "The ledger does not answer.")
    return offset("ledger clock", theirs.timestamp(), asked)


def offset(check: str, theirs_s: float, asked_s: float) -> Finding:
    """Judge another clock, read between ``asked_s`` and now."""
    answered_s = time.time()
    apart_s = theirs_s - (asked_s + answered_s) / 2
    known_s = max(0.0, abs(apart_s) - (answered_s - asked_s) / 2)
    side = "ahead of" if apart_s > 0 else "behind"
    message = f"It is {abs(apart_s):.3f} s {side} this machine's."
    if known_s > OFFSET_MAX_S:
        return problem(check, message, "Let NTP or chrony keep both machines' clocks.")
    return ok(check, message)


def contents(ledger: Ledger) -> Iterator[Finding]:
    """Look at what waits to be told to Celery, and whom the ledger lets in."""
    now = datetime.now(UTC)
    with ledger.read() as conn:
        oldest, parked = outbox.oldest(conn), outbox.parked(conn)
    yield _waiting(oldest, now)
    if parked.rows:
        yield problem(
            "parked",
            f"{parked.rows} effects could not be told to Celery and were given up; the last, "
            f"{parked.kind} of job {parked.job_id}: {parked.error}",
            "Remove the cause, then let them be tried again: UPDATE outbox SET parked_at = NULL, "
            "tries = 0 WHERE parked_at IS NOT NULL.",
        )
    else:
        yield ok("parked", "Celery was told everything, or will be.")
    yield _unrestricted(ledger, now)


def queues(ledger: Ledger) -> list[str]:
    """List the queues that ever had a job."""
    with ledger.read() as conn:
        return queue_names(conn)


def _waiting(oldest: datetime | None, now: datetime) -> Finding:
    if oldest is None:
        return ok("outbox", "Nothing waits to be told to Celery.")
    waits_s = max(0.0, (now - oldest).total_seconds())
    message = f"The oldest effect has waited {age(waits_s)} to be told to Celery."
    if waits_s > OUTBOX_MAX_S:
        return problem(
            "outbox",
            message,
            "See that a bridge runs and reaches the Celery broker and the result backend; its log "
            "names what it waits for.",
        )
    return ok("outbox", message)


def _unrestricted(ledger: Ledger, now: datetime) -> Finding:
    """List the workers' credentials that any type or any repository is open to."""
    found = Credentials(ledger).list(kind="worker", limit=CREDENTIALS_MAX)
    active = [one for one in found if state(one, now) == "active"]
    named = []
    for one in active:
        fields = {"type": one.policy.types, "repository": one.policy.repositories}
        free = [f"any {name}" for name, allowed in fields.items() if allowed is None]
        if free:
            named.append(f"{one.worker_id} ({one.id}: {', '.join(free)})")
    if not named:
        return ok("credentials", f"All {len(active)} workers' tokens are restricted.")
    more = len(named) - NAMED_MAX
    shown = ", ".join(named[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return Finding(
        "credentials",
        Level.NOTICE,
        f"{len(named)} of {len(active)} workers' tokens are not restricted: {shown}.",
        "Where that is too much, create one with --allow-type and --allow-repository, and revoke "
        "this one.",
    )
