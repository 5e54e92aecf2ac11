"""Bringing back what failed for good, on both databases and a real Valkey."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Job, Rejection
from broker.redrive_shapes import Redrive, RedriveFilter
from broker.redrive_shapes import RedriveOutcome as Outcome
from broker.states import Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new, titles, told


def dead(of: JobQueue, *, retryable: bool = True, **values: Any) -> Job:
    """Make a job that failed for good: a dead letter, or failed when not retryable."""
    of.create(new(**{"max_attempts": 1} | values))
    [job] = claim(of)
    return of.fail(job.id, holder(job), error_message="broken", retryable=retryable)


def outcomes(queue: JobQueue, *ids: str, **asked: Any) -> list[Outcome]:
    """Redrive by ids and say what became of each."""
    return [item.outcome for item in queue.redrive(Redrive(ids=ids, **asked)).items]


@pytest.mark.parametrize("retryable", [True, False])
def test_a_redriven_job_runs_anew(queue: JobQueue, ledger: Ledger, retryable: bool) -> None:
    job = dead(queue, retryable=retryable)
    done = queue.redrive(Redrive(ids=(job.id,), requested_by="ops"))
    assert (done.matched, done.redriven, done.more) == (1, 1, False)
    back = queue.catalog.get(job.id)
    assert (back.status, back.run, back.attempt, back.fence) == (Status.QUEUED, 2, 1, 1)
    assert (back.finished_at, back.reason, back.claimed_by) == (None, None, None)
    assert (back.requested_by, back.error_message) == ("ops", "broken")
    assert titles(queue, job)[-1] == "Job redriven"
    assert told(ledger, job)[-2:] == ["state:RETRY", "event:task-retried"]

    [again] = claim(queue, "w2")
    assert (again.id, again.fence, again.attempt) == (job.id, 2, 1)
    ended = queue.complete(again.id, holder(again), result=7)
    assert (ended.status, ended.result, ended.error_message) == (Status.SUCCEEDED, 7, None)
    assert told(ledger, job)[-2:] == ["store:SUCCESS", "event:task-succeeded"]
    runs = [(one.run, one.fence, one.outcome) for one in queue.catalog.attempts(job.id)]
    assert runs == [(1, 1, "failed"), (2, 2, "succeeded")]


def test_a_repeat_finds_nothing_more(queue: JobQueue) -> None:
    job = dead(queue)
    assert outcomes(queue, job.id, job.id) == [Outcome.REDRIVEN]
    done = queue.redrive(Redrive(ids=(job.id,)))
    assert (done.matched, done.redriven) == (0, 0)
    assert [(one.outcome, one.status) for one in done.items] == [(Outcome.NOT_DEAD, Status.QUEUED)]
    assert queue.catalog.get(job.id).run == 2


def test_the_fail_of_the_run_before_is_answered_and_changes_nothing(queue: JobQueue) -> None:
    queue.create(new(max_attempts=1))
    [job] = claim(queue)
    queue.fail(job.id, holder(job), error_message="broken", retryable=True)
    queue.redrive(Redrive(ids=(job.id,)))
    [again] = claim(queue)
    late = queue.fail(job.id, holder(job), error_message="broken", retryable=True)
    assert (late.status, late.lease_id) == (Status.RUNNING, again.lease_id)


def test_a_dry_run_changes_nothing(queue: JobQueue, ledger: Ledger) -> None:
    job = dead(queue)
    before = queue.catalog.get(job.id), titles(queue, job), told(ledger, job)
    done = queue.redrive(Redrive(ids=(job.id,), dry_run=True))
    assert (done.matched, done.redriven) == (1, 0)
    assert [one.outcome for one in done.items] == [Outcome.MATCHED]
    assert (queue.catalog.get(job.id), titles(queue, job), told(ledger, job)) == before
    assert claim(queue) == []


def test_what_is_not_dead_stays_where_it_is(queue: JobQueue, clock: SetClock) -> None:
    [rejected] = queue.ingest(
        [Rejection(task_id=str(uuid4()), queue="remote", type="?", reason="x")]
    )
    assert rejected.job is not None
    expired = dead(queue, expires_at=clock.now() + timedelta(seconds=5))
    waiting = queue.create(new())
    clock.advance(5)
    ids = (waiting.id, rejected.job.id, expired.id, str(uuid4()))
    assert outcomes(queue, *ids) == [
        Outcome.NOT_DEAD, Outcome.REJECTED, Outcome.EXPIRED, Outcome.NOT_FOUND,
    ]  # fmt: skip
    every = RedriveFilter(statuses=(Status.DEAD_LETTER, Status.FAILED))
    assert queue.redrive(Redrive(filter=every)).items == ()
    assert [queue.catalog.get(one).run for one in ids[:3]] == [1, 1, 1]


def test_a_rate_spreads_them_over_time(queue: JobQueue, clock: SetClock, upkeep: Upkeep) -> None:
    ids = [dead(queue).id for _ in range(5)]
    started = clock.now()
    done = queue.redrive(Redrive(ids=tuple(ids), max_rate=2.0))
    moments = [one.next_attempt_at for one in done.items]
    assert moments == [
        None, *(started + timedelta(seconds=at / 2) for at in range(1, 5)),
    ]  # fmt: skip
    ready = []
    for _ in range(5):
        upkeep.promote()
        ready.append([job.id for job in claim(queue, max_jobs=10)])
        clock.advance(0.501)
    assert ready == [[one] for one in ids]


def test_a_filter_means_what_it_says_oldest_first(queue: JobQueue, clock: SetClock) -> None:
    old = dead(queue, type="a")
    clock.advance(60)
    since = clock.now()
    young = dead(queue, type="a")
    failed = dead(queue, type="a", retryable=False)
    elsewhere = dead(queue, type="a", queue="other")
    other = dead(queue, type="b")

    def ids(**wanted: Any) -> list[str]:
        asked = Redrive(filter=RedriveFilter(**wanted), dry_run=True)
        return [one.id for one in queue.redrive(asked).items]

    assert ids() == [old.id, young.id, elsewhere.id, other.id]
    assert ids(type="a", since=since) == [young.id, elsewhere.id]
    assert ids(queue="other") == [elsewhere.id]
    assert ids(statuses=(Status.FAILED,)) == [failed.id]
    both = (Status.FAILED, Status.DEAD_LETTER)
    assert ids(statuses=both, type="a", queue="remote") == [old.id, young.id, failed.id]

    first = queue.redrive(Redrive(filter=RedriveFilter(limit=3)))
    assert (first.redriven, first.more) == (3, True)
    rest = queue.redrive(Redrive(filter=RedriveFilter(limit=3)))
    assert ([one.id for one in rest.items], rest.more) == ([other.id], False)


@pytest.mark.parametrize("goes_well", [True, False])
def test_what_hung_on_the_first_end_is_not_fired_again(
    queue: JobQueue, ledger: Ledger, goes_well: bool
) -> None:
    link = {"task": "t", "args": [], "kwargs": {}, "options": {}}
    embed = {"callbacks": [link], "errbacks": [link], "chain": [link], "chord": link}
    job = dead(queue, envelope={"headers": {}, "embed": embed})
    first = told(ledger, job)
    assert [kind for kind in first if not kind.startswith(("event", "state"))] == [
        "store:FAILURE", "chord:FAILURE", "chain:", "errback:",
    ]  # fmt: skip
    queue.redrive(Redrive(ids=(job.id,)))
    [again] = claim(queue)
    if goes_well:
        queue.complete(again.id, holder(again))
        # links, which only a success fires, were never fired
        expected = ["link:", "store:SUCCESS", "event:task-succeeded"]
    else:
        queue.fail(again.id, holder(again), error_message="again")
        expected = ["store:FAILURE", "event:task-failed"]
    assert told(ledger, job)[len(first) :] == [
        "state:RETRY", "event:task-retried", "state:STARTED", "event:task-started", *expected,
    ]  # fmt: skip


def test_more_than_a_page_is_brought_back(queue: JobQueue, ledger: Ledger) -> None:
    items = [
        new(max_attempts=1, payload={"n": n})
        for n in range(450)
    ]  # fmt: skip
    queue.ingest(items)
    while batch := claim(queue, max_jobs=100):
        for job in batch:
            queue.fail(job.id, holder(job), error_message="x")
    asked = Redrive(filter=RedriveFilter(statuses=(Status.FAILED,)), max_rate=100.0)
    done = queue.redrive(asked)
    assert (done.matched, done.redriven, done.more) == (450, 450, False)
    moments = [one.next_attempt_at for one in done.items][1:]
    assert moments == sorted(set(moments))
