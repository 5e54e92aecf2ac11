"""Six mistakes that a proof worth its name must find, each as a change of the product for a while.

They are those of which each would be made by somebody in a hurry, and which a happy day hides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch
from weakref import WeakKeyDictionary

from broker.bridge.fetch import Drain
from broker.bridge.inbox import Inbox
from broker.bridge.relay import Relay
from broker.errors import JobStateConflict, LedgerUnavailable, OwnershipMismatch
from broker.indexing import Indexer
from broker.ledger import holders, outbox
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Holder, Job
from broker.states import Status
from tests.simulation.oracle import Broken


@contextmanager
def complete_without_lease_check() -> Iterator[None]:
    """Let whoever once held a job end it."""

    def check(job: Job, _holder: Holder) -> None:
        if job.status is not Status.RUNNING:
            raise JobStateConflict

    with patch.object(holders, "check_holder", check):
        yield


@contextmanager
def ack_before_insert() -> Iterator[None]:
    """Forget messages before the ledger has them."""
    ingest = Drain._ingest

    def hasty(self: Drain, inbox: Inbox, raws: list[bytes]) -> None:
        inbox.settle(len(raws))
        with patch.object(inbox, "settle", lambda *_: True):
            ingest(self, inbox, raws)

    with patch.object(Drain, "_ingest", hasty):
        yield


@contextmanager
def settle_marked_before_done() -> Iterator[None]:
    """Mark what Celery must be told before it is told."""
    relay = Relay._relay

    def hasty(self: Relay, taken: Sequence[Any], known: dict[str, Any]) -> None:
        self._mark(taken)
        relay(self, taken, known)

    with patch.object(Relay, "_relay", hasty):
        yield


@contextmanager
def answer_before_commit() -> Iterator[None]:
    """Say 200 to a complete and write it down a moment later.

    A store that is away is tried again, by whoever asks next; only a write that comes too late is
    given up. So nothing but the order of answer and commit is wrong.
    """
    complete = JobQueue.complete
    later: WeakKeyDictionary[JobQueue, tuple[str, Holder, dict[str, Any]]] = WeakKeyDictionary()

    def hasty(self: JobQueue, job_id: str, holder: Holder, **said: Any) -> Job:
        if self in later:
            last_job, last_holder, last_said = later[self]
            with suppress(JobStateConflict, OwnershipMismatch):
                complete(self, last_job, last_holder, **last_said)
            later.pop(self, None)
        with self.ledger.read() as conn:
            job, _ = holders.held(conn, job_id, holder)
        later[self] = (job_id, holder, said)
        return replace(job, status=Status.SUCCEEDED)

    with patch.object(JobQueue, "complete", hasty):
        yield


@contextmanager
def no_reconcile_of_jobs() -> Iterator[None]:
    """Rebuild an index that is lost, but look for no job that it lacks."""
    with (
        patch.object(Indexer, "_changed", lambda *_: []),
        patch.object(Indexer, "_walked", lambda *_: []),
    ):
        yield


@contextmanager
def outbox_outside_the_transaction() -> Iterator[None]:
    """Write what Celery must be told in a transaction of its own, after the end it tells of."""
    insert, write = outbox.insert, Ledger.write
    here = threading.local()

    def later(_conn: Any, rows: Sequence[Any], now: Any) -> None:
        here.rows = [*getattr(here, "rows", []), (rows, now)]

    @contextmanager
    def two(self: Ledger, **how: Any) -> Iterator[Any]:
        here.rows = []
        with write(self, **how) as conn:
            yield conn
        if here.rows:
            self.schedule.step("ledger.write", "before", LedgerUnavailable)  # type: ignore[attr-defined]
            with write(self, **how) as conn:
                for rows, now in here.rows:
                    insert(conn, rows, now)

    with patch.object(outbox, "insert", later), patch.object(Ledger, "write", two):
        yield


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake, and the promises it breaks: a run that breaks only others has not found it."""

    made: Callable[[], AbstractContextManager[None]]
    breaks: frozenset[str]

    def found(self, broken: Sequence[Broken]) -> list[Broken]:
        """Return the oracle's findings that show this mistake."""
        return [one for one in broken if one.invariant in self.breaks]


#: by the promises of the oracle
BUGS: Final[Mapping[str, Bug]] = {
    made.__name__: Bug(made, frozenset(breaks))
    for made, breaks in (
        (complete_without_lease_check, {"I4"}),
        (ack_before_insert, {"I1"}),
        (settle_marked_before_done, {"I8"}),
        (answer_before_commit, {"I5"}),
        (no_reconcile_of_jobs, {"I19"}),
        (outbox_outside_the_transaction, {"I5", "I8"}),
    )
}
