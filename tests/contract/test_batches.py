"""Several leases ended by one call, on both databases and a real Valkey."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from broker import errors
from broker.ledger import batches
from broker.ledger.driver import Call
from broker.ledger.engine import Ledger
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Completion, Job
from broker.reservations.store import Reservations
from broker.states import Status
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new, titles, told
from tests.services import Valkey

#: each table written
WRITE: Final = re.compile(r"(?:INSERT INTO|UPDATE) (?:jobs|attempts|events|outbox|workers)\b")


def ends(jobs: list[Job], **values: Any) -> list[Completion]:
    """Complete each with its own place in the list."""
    return [
        Completion(job_id=job.id, lease_id=job.lease_id, **{"result": {"n": n}} | values)
        for n, job in enumerate(jobs)
    ]


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[str]]:
    """Collect what the database is asked to write, and each commit."""
    seen: list[str] = []
    at_once = ledger.at_once

    def on_calls(*calls: Call) -> Any:
        for call in calls:
            seen.extend(WRITE.findall(call.statement.text))
        answer = at_once(*calls)
        seen.append("COMMIT")
        return answer

    def on_execute(_conn: Any, _cursor: Any, text: str, *_: Any) -> None:
        seen.extend(WRITE.findall(text))

    def on_commit(_conn: Any) -> None:
        seen.append("COMMIT")

    sa.event.listen(ledger.engine, "before_cursor_execute", on_execute)
    sa.event.listen(ledger.engine, "commit", on_commit)
    try:
        with patch.object(ledger, "at_once", on_calls):
            yield seen
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", on_execute)
        sa.event.remove(ledger.engine, "commit", on_commit)


def test_a_batch_is_one_transaction_and_one_update_each_way(
    queue: JobQueue, ledger: Ledger
) -> None:
    for n in range(20):
        queue.create(new(payload={"n": n}))
    with statements(ledger) as claiming:
        jobs = claim(queue, max_jobs=20)
    with statements(ledger) as completing:
        done = queue.complete_many("w1", ends(jobs))
    assert (len(jobs), len(done)) == (20, 20)
    for seen in (claiming, completing):
        assert seen.count("UPDATE jobs") == 1
        assert len(seen) - seen.count("COMMIT") <= 5
    assert completing.count("COMMIT") == 1


def test_each_ends_with_its_own_result(queue: JobQueue, ledger: Ledger) -> None:
    for priority in (3, 2, 1):
        queue.create(new(priority=priority))
    jobs = claim(queue, max_jobs=3)
    some = ends(jobs)
    some[1] = Completion(job_id=jobs[1].id, lease_id=jobs[1].lease_id, result_summary="ü")
    done = queue.complete_many("w1", some)
    for job, end, outcome in zip(jobs, some, done, strict=True):
        assert isinstance(outcome, Job)
        assert outcome == queue.catalog.get(job.id)
        assert (outcome.status, outcome.lease_id) == (Status.SUCCEEDED, None)
        assert (outcome.result, outcome.result_summary) == (end.result, end.result_summary)
        assert outcome.finished_at is not None
        assert titles(queue, job) == ["Job queued", "Job claimed", "Job completed"]
        assert told(ledger, job)[-2:] == ["store:SUCCESS", "event:task-succeeded"]
        [attempt] = queue.catalog.attempts(job.id)
        assert (attempt.outcome, attempt.ended_at) == ("succeeded", outcome.finished_at)


def test_a_batch_leaves_what_a_single_complete_leaves(queue: JobQueue) -> None:
    for _ in range(2):
        queue.create(new())
    one, other = claim(queue, max_jobs=2)
    single = queue.complete(one.id, holder(one), result=1, result_summary="s")
    [many] = queue.complete_many("w1", ends([other], result=1, result_summary="s"))
    assert isinstance(many, Job)
    own = {"id", "task_id", "seq", "created_at", "updated_at", "started_at", "finished_at"}
    for name in set(Job.__dataclass_fields__) - own:
        assert getattr(single, name) == getattr(many, name), name


def test_a_repeat_is_answered_alike(queue: JobQueue) -> None:
    for _ in range(3):
        queue.create(new())
    jobs = claim(queue, max_jobs=3)
    first = queue.complete_many("w1", ends(jobs))
    assert queue.complete_many("w1", ends(jobs)) == first
    # in another company too, and alone
    assert queue.complete_many("w1", ends(jobs)[1:2]) == first[1:2]
    assert queue.complete(jobs[0].id, holder(jobs[0]), result={"n": 0}) == first[0]
    other = queue.complete_many("w1", ends(jobs, result="other"))
    assert [type(one) for one in other] == [errors.JobStateConflict] * 3


def test_with_one_on_which_something_hangs_all_end_or_none(queue: JobQueue) -> None:
    queue.create(new())
    queue.create(new(envelope={"embed": {"callbacks": [{"task": "next"}]}}))
    jobs = claim(queue, max_jobs=2)
    with (
        patch.object(batches.outbox, "insert", side_effect=errors.LedgerUnavailable),
        pytest.raises(errors.LedgerUnavailable),
    ):
        queue.complete_many("w1", ends(jobs))
    assert [queue.catalog.get(job.id).status for job in jobs] == [Status.RUNNING] * 2
    done = queue.complete_many("w1", ends(jobs))
    assert [one.status for one in done if isinstance(one, Job)] == [Status.SUCCEEDED] * 2


def test_one_that_is_refused_keeps_no_other_from_ending(queue: JobQueue) -> None:
    for _ in range(4):
        queue.create(new())
    mine = claim(queue, max_jobs=2)
    [foreign] = claim(queue, "w2")
    [lost] = claim(queue)
    queue.release(lost.id, holder(lost))
    [again] = claim(queue)
    assert again.id == lost.id
    done = queue.complete_many(
        "w1", [*ends([mine[0], foreign, lost]), Completion(job_id="none"), *ends(mine[1:])]
    )
    assert [type(one) for one in done] == [
        Job, errors.OwnershipMismatch, errors.LeaseLost, errors.JobNotFound, Job,
    ]  # fmt: skip
    for job in (foreign, lost):
        assert queue.catalog.get(job.id).status is Status.RUNNING
    assert [queue.catalog.get(job.id).status for job in mine] == [Status.SUCCEEDED] * 2


def test_one_that_is_to_be_cancelled_completes_all_the_same(queue: JobQueue) -> None:
    queue.create(new())
    [job] = claim(queue)
    queue.cancel(job.id)
    [done] = queue.complete_many("w1", ends([job]))
    assert isinstance(done, Job)
    assert done.status is Status.SUCCEEDED


def test_what_has_ended_leaves_the_index(queue: JobQueue, reservations: Reservations) -> None:
    for _ in range(3):
        queue.create(new())
    queue.complete_many("w1", ends(claim(queue, max_jobs=3)))
    assert list(reservations.client.scan_iter("*:job:*")) == []


def test_a_clock_behind_does_not_turn_the_story_back(queue: JobQueue, clock: SetClock) -> None:
    for _ in range(2):
        queue.create(new())
    jobs = claim(queue, max_jobs=2)
    clock.advance(-5)
    for job, done in zip(jobs, queue.complete_many("w1", ends(jobs)), strict=True):
        assert isinstance(done, Job)
        assert done.finished_at == done.updated_at >= job.updated_at


def test_a_next_claim_that_cannot_be_tried_is_no_error(
    ledger: Ledger, clock: SetClock, queue: JobQueue
) -> None:
    queue.create(new())
    server = Valkey().start()
    reservations = Reservations.connect(server.url)
    server.remove()
    away = JobQueue(ledger, reservations, clock=clock, settings=queue.settings)
    request = ClaimRequest(worker_id="w1", policy=Policy(), lease_seconds=60)
    with pytest.raises(errors.Unavailable):
        away.claim(request)
    assert away.claim_next(request) is None
    assert queue.claim_next(request) != []
