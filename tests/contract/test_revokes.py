"""Celery's revoke as a promise of the ledger: by id and by stamp, before and after the task."""

import json
from typing import Any
from uuid import uuid4

import pytest
import redis

from broker.bridge.revokes import HEARD, Revoke, Revokes
from broker.catalog import Catalog
from broker.errors import LedgerUnavailable
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Job, NewJob
from broker.states import Status
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, told

ORDER = "order"


def task(**values: Any) -> NewJob:
    return NewJob(**{"task_id": str(uuid4()), "queue": "remote", "type": "t"} | values)


def stamped(*values: str) -> NewJob:
    headers = {"stamped_headers": [ORDER], "stamps": {ORDER: list(values)}}
    return task(envelope={"headers": headers})


def taken(queue: JobQueue, revokes: Revokes, *new: NewJob) -> list[str]:
    """Take messages as a bridge does."""
    revokes.apply(queue.ingest(new))
    return [one.task_id for one in new]


def said(queue: JobQueue, method: str = "revoke", **arguments: Any) -> Revokes:
    """Hear a revoke, and let another bridge carry it out: the first one died."""
    Revokes(queue).hear(Revoke.read(method, arguments))
    other = Revokes(queue)
    assert (other.step(), other.step()) == (1, 0)
    return other


def statuses(ledger: Ledger, ids: list[str]) -> list[str]:
    return [str(Catalog(ledger).get(one).status) for one in ids]


def test_a_revoke_waits_for_its_task_and_never_undoes_an_end(
    queue: JobQueue, ledger: Ledger
) -> None:
    revokes, early = Revokes(queue), task()
    waiting, ended = taken(queue, revokes, task(), task())
    claim(queue, max_jobs=2)
    [job] = [job for job in Catalog(ledger).page()[0] if job.id == ended]
    queue.complete(ended, holder(job), result=1)
    queue.release(waiting, holder(Catalog(ledger).get(waiting)))
    said(queue, task_id=[early.task_id, waiting, ended])
    assert statuses(ledger, [waiting, ended]) == [Status.CANCELLED, Status.SUCCEEDED]
    assert statuses(ledger, taken(queue, revokes, early)) == [Status.CANCELLED]


def test_a_message_that_comes_again_is_looked_at_again(queue: JobQueue, ledger: Ledger) -> None:
    """Its bridge may have died between the ledger's commit and the look."""
    early = task()
    revokes = said(queue, task_id=early.task_id)
    queue.ingest([early])
    assert statuses(ledger, [early.task_id]) == [Status.QUEUED]
    assert statuses(ledger, taken(queue, revokes, early)) == [Status.CANCELLED]


@pytest.mark.parametrize("by", ["id", "stamp"])
@pytest.mark.parametrize("how", ["revoke", "terminate"])
def test_what_runs_is_stopped_by_terminate_alone(
    queue: JobQueue, ledger: Ledger, clock: SetClock, by: str, how: str
) -> None:
    """As with an ordinary worker; but a revoked task is not tried again either."""
    new = [stamped("7", "8") for _ in range(4)]
    ids = taken(queue, Revokes(queue), *new)
    jobs = {job.id: job for job in claim(queue, max_jobs=4)}
    terminate = how == "terminate"
    if by == "id":
        said(queue, how, task_id=ids)
    else:
        said(queue, "revoke_by_stamped_headers", headers={ORDER: "8"}, terminate=terminate)
    running = [Catalog(ledger).get(one) for one in ids]
    assert {job.status for job in running} == {Status.RUNNING}
    assert {job.cancel_requested_at is not None for job in running} == {terminate}
    assert {job.requested_by for job in running} == {"celery"}

    done, failed, flaky, given = ids
    fail = {"error_message": "no"}
    queue.fail(failed, holder(jobs[failed]), **fail)
    queue.fail(flaky, holder(jobs[flaky]), retryable=True, **fail)
    queue.release(given, holder(jobs[given]))
    if terminate:
        queue.cancel_ack(done, holder(jobs[done]))
        assert set(statuses(ledger, ids)) == {Status.CANCELLED}
    else:
        queue.complete(done, holder(jobs[done]), result=1)
        ends = [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.CANCELLED]
        assert statuses(ledger, ids) == ends
    assert told(ledger, jobs[flaky])[-2:] == ["store:REVOKED", "event:task-revoked"]


def test_a_revoked_job_whose_worker_is_lost_is_not_tried_again(
    queue: JobQueue, ledger: Ledger, clock: SetClock, upkeep: Any
) -> None:
    [task_id] = taken(queue, Revokes(queue), task())
    claim(queue, lease_seconds=1)
    said(queue, task_id=task_id)
    clock.advance(60)
    upkeep.expire()
    assert statuses(ledger, [task_id]) == [Status.CANCELLED]


def test_stamps_are_remembered_and_only_theirs_are_revoked(queue: JobQueue, ledger: Ledger) -> None:
    here = taken(queue, Revokes(queue), stamped("1"), stamped("2"), task())
    revokes = said(queue, "revoke_by_stamped_headers", headers=[f"{ORDER}=2", "other=1"])
    assert statuses(ledger, here) == [Status.QUEUED, Status.CANCELLED, Status.QUEUED]
    later = taken(queue, revokes, stamped("1"), stamped("3", "2"), task())
    assert statuses(ledger, later) == [Status.QUEUED, Status.CANCELLED, Status.QUEUED]


def test_what_an_away_ledger_could_not_be_told_is_carried_out_later(
    queue: JobQueue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    revokes = Revokes(queue)
    [task_id] = taken(queue, revokes, task())
    revokes.hear(Revoke.read("revoke", {"task_id": task_id}))
    with monkeypatch.context() as patch:
        patch.setattr(queue, "cancel", _away)
        with pytest.raises(LedgerUnavailable):
            revokes.step()
    assert revokes.step() == 1
    assert statuses(ledger, [task_id]) == [Status.CANCELLED]


def _away(*_: Any, **__: Any) -> Job:
    raise LedgerUnavailable


def test_without_redis_a_revoke_is_kept_in_memory(
    queue: JobQueue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    revokes = Revokes(queue)
    [task_id] = taken(queue, revokes, task())

    def refuse(*_: Any) -> None:
        raise redis.ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(queue.reservations.client, "hset", refuse)
        revokes.hear(Revoke.read("revoke", {"task_id": task_id}))
    assert revokes.step() == 1
    assert statuses(ledger, [task_id]) == [Status.CANCELLED]


@pytest.mark.parametrize("name", ["\ud800", "a\x00b"])
def test_a_revoke_of_no_possible_task_holds_up_no_other(
    queue: JobQueue, ledger: Ledger, name: str
) -> None:
    revokes = Revokes(queue)
    first, second = taken(queue, revokes, task(), task())
    revokes.hear(Revoke.read("revoke", {"task_id": [name, first]}))
    # as another version wrote it down
    told = json.dumps({"ids": [name, second], "stamps": [], "terminate": False})
    queue.reservations.client.hset(HEARD, "other", told)
    assert revokes.step() == 2
    assert statuses(ledger, [first, second]) == [Status.CANCELLED] * 2


@pytest.mark.parametrize("headers", [None, 7, ["no-sign"], "order"])
def test_a_revoke_that_makes_no_sense_is_refused(headers: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Revoke.read("revoke_by_stamped_headers", {"headers": headers})
