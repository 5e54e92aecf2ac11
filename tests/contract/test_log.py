"""A job's log goes forward, whoever writes by whatever clock: who reads by time misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from broker.ledger.engine import Ledger
from broker.ledger.jobs import jobs
from broker.queue import JobQueue
from broker.records import Holder, Job, NewEvent
from broker.redrive_shapes import Redrive
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from tests.contract.conftest import SetClock
from tests.contract.test_batches import ends
from tests.contract.test_queue import claim, holder, new

#: how far the clocks of two processes are apart
APART_S = 3600.0


@pytest.fixture
def behind(ledger: Ledger, reservations: Reservations, clock: SetClock) -> JobQueue:
    """Give the queue of another process, whose clock is an hour behind."""
    late = SetClock()
    late.moment = clock.moment
    late.advance(-APART_S)
    return JobQueue(ledger, reservations, clock=late, settings=QueueSettings())


def say(queue: JobQueue, job: Job, who: Holder, *words: str) -> None:
    queue.append_events(job.id, who, [NewEvent(message=word) for word in words])


def cancel(queue: JobQueue, job: Job, who: Holder) -> None:
    queue.cancel(job.id)
    queue.cancel_ack(job.id, who)


ENDS: dict[str, Callable[[JobQueue, Job, Holder], object]] = {
    "complete": lambda queue, job, who: queue.complete(job.id, who, result=1),
    "complete_many": lambda queue, job, _who: queue.complete_many("w1", ends([job])),
    "fail": lambda queue, job, who: queue.fail(job.id, who, error_message="no"),
    "retry": lambda queue, job, who: queue.fail(job.id, who, error_message="no", retryable=True),
    "release": lambda queue, job, who: queue.release(job.id, who),
    "cancel": cancel,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_clock_behind_writes_nothing_that_looks_older(
    queue: JobQueue, behind: JobQueue, clock: SetClock, end: str
) -> None:
    job = queue.create(new())
    [held] = claim(queue)
    who = holder(held)
    # the two take turns, and a reader asks beyond the last moment it saw
    seen, last = [], None
    for step in (
        lambda: say(queue, job, who, "one", "two"),
        lambda: say(behind, job, who, "three"),
        lambda: say(behind, job, who, "four", "five"),
        lambda: clock.advance(1),
        lambda: say(queue, job, who, "six"),
        lambda: ENDS[end](behind, job, who),
        lambda: behind.cancel(job.id) if end in {"retry", "release"} else None,
        lambda: queue.redrive(Redrive(ids=(job.id,), max_rate=None)) if end == "fail" else None,
    ):
        step()
        found = queue.catalog.events(job.id, after=last)
        seen += [event.seq for event in found]
        last = found[-1].created_at if found else last
    log = queue.catalog.events(job.id)
    assert seen == [event.seq for event in log]
    assert all(before.created_at < after.created_at for before, after in pairwise(log))
    # where the clock was not behind, it is the clock's
    assert log[-1].created_at < clock.now() + timedelta(milliseconds=1)
    at_six = next(event for event in log if event.message == "six")
    assert at_six.created_at == clock.now()


def test_a_repeated_entry_moves_no_clock(queue: JobQueue, clock: SetClock) -> None:
    job = queue.create(new())
    [held] = claim(queue)
    who = holder(held)
    once = [NewEvent(message="once", worker_seq=1)]
    first = queue.append_events(job.id, who, once)
    changed = queue.catalog.get(job.id)
    clock.advance(5)
    assert queue.append_events(job.id, who, once) == first
    assert queue.catalog.get(job.id) == changed


def test_an_entry_changes_nothing_that_an_index_of_jobs_knows(
    queue: JobQueue, clock: SetClock
) -> None:
    job = queue.create(new())
    [held] = claim(queue)
    who = holder(held)
    # the first takes the grant up
    say(queue, job, who, "one")
    before = row_of(queue, job)
    clock.advance(1)
    say(queue, job, who, "two", "three")
    after = row_of(queue, job)
    changed = {name for name, value in after.items() if before[name] != value}
    assert changed == {"event_seq", "logged_at"}
    known = sa.inspect(queue.ledger.engine).get_indexes("jobs")
    assert {"updated_at", "status"} <= {name for one in known for name in one["column_names"]}
    assert not changed & {name for one in known for name in one["column_names"]}
    # so whoever asks what changed since then, as a reconcile does, does not read the job again
    assert after["updated_at"] == held.updated_at


def row_of(queue: JobQueue, job: Job) -> dict[str, Any]:
    with queue.ledger.read() as conn:
        found = conn.execute(sa.select(jobs).where(jobs.c.id == job.id)).one()
    return dict(found._mapping)
