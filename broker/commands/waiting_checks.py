"""What ``drawbridge doctor`` says of jobs that wait: whether anybody may take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from broker.catalog import Catalog
from broker.clock import Clock
from broker.commands.findings import Finding, Level, age, ok, skipped
from broker.commands.policy import rules
from broker.errors import JobNotFound, Unavailable
from broker.ledger import fleet
from broker.ledger.engine import Ledger
from broker.reservations.store import Reservations
from broker.roster import Roster
from broker.why import Answer, Why

#: what waits shorter may be between two claims, or two looks of reconcile
WAITS_S: Final = 60.0
#: kinds of work looked at, the oldest first
KINDS_MAX: Final = 5


def waiting(ledger: Ledger, url: str) -> Iterator[Finding]:
    """Look for work that no live worker may take."""
    reservations = Reservations.connect(url)
    clock = Clock(reservations.clock_ms)
    roster = Roster(ledger, reservations, clock=clock)
    why = Why(ledger, catalog=Catalog(ledger), roster=roster, clock=clock)
    try:
        yield _judged(ledger, why, clock)
    except Unavailable as error:
        yield skipped("waiting", error.message)
    finally:
        reservations.close()


def _judged(ledger: Ledger, why: Why, clock: Clock) -> Finding:
    now = clock.now()
    with ledger.read() as conn:
        kinds = fleet.waiting(conn, since=now - timedelta(seconds=WAITS_S), limit=KINDS_MAX)
    stuck = []
    for kind in kinds:
        try:
            answer = why.explain(kind.oldest_id, rules)
        except JobNotFound:
            continue
        if answer.reasons or not any(one.verdict.allowed for one in answer.workers):
            waits = age((now - kind.oldest).total_seconds())
            stuck.append(
                f"{kind.jobs} of type {kind.type!r} on queue {kind.queue!r}, since {waits}: "
                f"{_causes(answer)} (job {kind.oldest_id})"
            )
    if not stuck:
        return ok("waiting", "What waits longer than a minute has a worker that may take it.")
    return Finding(
        "waiting",
        Level.NOTICE,
        f"Jobs wait that no live worker may take: {'; '.join(stuck)}.",
        "`drawbridge jobs why ID` names each worker and its rule: start a worker, or let one take "
        "them by its --types and its token.",
    )


def _causes(answer: Answer) -> str:
    """Say it in a few words, however many workers there are."""
    found = [one.message for one in answer.reasons]
    by_rule = Counter(one.verdict.rule for one in answer.workers)
    found += [f"{number} live, kept out by {rule}" for rule, number in by_rule.most_common()]
    return ", ".join(found)
