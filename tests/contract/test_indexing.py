"""How the reservations are kept in step with the ledger, and what becomes of those that are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from broker import errors
from broker.ledger import jobs as job_rows
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Job
from broker.reservations.keys import QueueKeys
from broker.reservations.shapes import Placement
from broker.reservations.store import Reservations
from broker.states import Index, Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.test_claims import index_of
from tests.contract.test_queue import claim, holder, new
from tests.processes import until


def unseen(queue: JobQueue, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    """Let a call's news not reach the index."""
    with monkeypatch.context() as patch:
        patch.setattr(queue.index, "put", lambda *_, **__: None)
        return call()


# -- entries that lie -------------------------------------------------------------------------


def offer(queue: JobQueue, job: Job) -> None:
    """Let the index offer a job, whatever it is."""
    client, prefix = queue.reservations.client, QueueKeys("remote", 2).prefix
    client.zadd(f"{prefix}lane:{job.lane}", {job.member: 0})
    client.zadd(f"{prefix}heads", {f"{job.member} {job.lane}": 0})


def cancelled(queue: JobQueue, job: Job) -> Job:
    return queue.cancel(job.id)


def held_by_another(queue: JobQueue, job: Job) -> Job:
    """Grant it past the index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue._claims, "_confirm", lambda *_: None)
        [granted] = claim(queue, "other")
    queue.reservations.client.zrem(f"{QueueKeys('remote', 2).prefix}granting", job.id)
    offer(queue, job)
    return granted


def waiting_for_its_retry(queue: JobQueue, job: Job) -> Job:
    [granted] = claim(queue)
    queue.fail(job.id, holder(granted), error_message="e", retryable=True)
    queue.reservations.client.zrem(f"{QueueKeys('remote', 2).prefix}scheduled", job.id)
    offer(queue, job)
    return queue.catalog.get(job.id)


@pytest.mark.parametrize(
    "lie, place",
    [
        (cancelled, []),
        (held_by_another, [Index.RESERVED]),
        (waiting_for_its_retry, [Index.SCHEDULED]),
    ],
)
def test_an_entry_that_lies_grants_nothing_and_is_put_right(
    queue: JobQueue,
    reservations: Reservations,
    monkeypatch: pytest.MonkeyPatch,
    lie: Callable[[JobQueue, Job], Job],
    place: list[Index],
):
    job = queue.create(new())
    assert reservations.generation("remote") == 2
    truth = unseen(queue, monkeypatch, lambda: lie(queue, job)) if lie is cancelled else None
    truth = truth or lie(queue, job)
    assert index_of(reservations, job) == [Index.READY]
    assert claim(queue) == []
    assert queue.catalog.get(job.id) == truth
    assert index_of(reservations, job) == place


def test_a_lying_entry_does_not_hide_the_next(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    lying = [queue.create(new(priority=9)) for _ in range(4)]
    good = queue.create(new())
    for job in lying:
        unseen(queue, monkeypatch, lambda job=job: queue.cancel(job.id))
    assert [job.id for job in claim(queue)] == [good.id]


def test_an_entry_of_no_job_is_forgotten(
    queue: JobQueue, reservations: Reservations, upkeep: Upkeep, clock: SetClock
):
    real = queue.create(new())
    ghost_id = str(uuid4())
    ghost = Placement(
        id=ghost_id, index=Index.READY, at_ms=0, version=1, priority=9,
        lane=queue.reservations.lane("remote", real.lane) or pytest.fail("no lane"),
        member=f"{0:016d}:{ghost_id}",
    )  # fmt: skip
    reservations.admit("remote", [ghost])
    assert [job.id for job in claim(queue, max_jobs=2)] == [real.id]
    clock.advance(11)
    upkeep.expire()
    assert [key for key in reservations.client.keys("*:job:*") if real.id not in key] == []


# -- reconcile --------------------------------------------------------------------------------


def forget(reservations: Reservations, job: Job) -> None:
    """Take a job out of the index without a trace."""
    prefix = QueueKeys("remote", reservations.generation("remote") or 0).prefix
    reservations.client.zrem(f"{prefix}lane:{job.lane}", job.member)
    reservations.client.zrem(f"{prefix}heads", f"{job.member} {job.lane}")
    reservations.client.delete(f"{prefix}job:{job.id}")


def test_what_went_missing_long_ago_is_found_page_by_page(
    queue: JobQueue,
    reservations: Reservations,
    upkeep: Upkeep,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("broker.indexing.PAGE", 3)
    made = [queue.create(new()) for _ in range(8)]
    clock.advance(3600)
    upkeep.reconcile()
    for job in made:
        forget(reservations, job)
    repaired = [upkeep.reconcile()["repaired"] for _ in range(3)]
    assert sum(repaired) == 8
    assert [index_of(reservations, job) for job in made] == [[Index.READY]] * 8
    assert [upkeep.reconcile()["repaired"] for _ in range(3)] == [0, 0, 0]


def test_heads_of_lanes_that_went_missing_are_found_page_by_page(
    queue: JobQueue,
    reservations: Reservations,
    upkeep: Upkeep,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("broker.indexing.LANES", 2)
    made = [queue.create(new(type=f"t{n}")) for n in range(5)]
    upkeep.reconcile()
    upkeep.reconcile()
    upkeep.reconcile()
    reservations.client.delete(f"{QueueKeys('remote', 2).prefix}heads")
    assert claim(queue) == []
    assert sum(upkeep.reconcile()["repaired"] for _ in range(3)) == 5
    assert {job.id for job in claim(queue, max_jobs=9)} == {job.id for job in made}


def test_a_queue_that_another_rebuilds_holds_up_no_other(
    queue: JobQueue, reservations: Reservations, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new(queue="lost"))
    queue.create(new())
    missing = unseen(queue, monkeypatch, lambda: queue.create(new()))
    reservations.client.delete(QueueKeys("lost").pointer)
    assert reservations.start_building("lost", "another")
    assert upkeep.reconcile() == {"rebuilt": 0, "repaired": 1}
    assert index_of(reservations, missing) == [Index.READY]


def test_a_failed_repair_leaves_the_mark_where_it_was(
    queue: JobQueue, reservations: Reservations, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new())
    upkeep.reconcile()
    before = reservations.mark("remote")
    job = unseen(queue, monkeypatch, lambda: queue.create(new()))

    def away(*_: object, **__: object) -> int:
        raise errors.ReservationsUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(reservations, "admit", away)
        with pytest.raises(errors.ReservationsUnavailable):
            upkeep.reconcile()
    assert reservations.mark("remote") == before
    upkeep.reconcile()
    assert index_of(reservations, job) == [Index.READY]


# -- rebuild ----------------------------------------------------------------------------------


def test_what_changes_during_a_rebuild_is_right_after_the_next_look(
    queue: JobQueue,
    reservations: Reservations,
    upkeep: Upkeep,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
):
    waiting, gone = queue.create(new()), queue.create(new(priority=-1))
    [running] = claim(queue)
    assert running.id == waiting.id
    reservations.client.flushall()
    publish = reservations.publish
    born: list[Job] = []

    def publish_late(*args: Any, **kwargs: Any) -> None:
        clock.advance(600)  # a rebuild of very many jobs
        queue.complete(running.id, holder(running))
        queue.cancel(gone.id)
        born.append(queue.create(new()))
        publish(*args, **kwargs)

    monkeypatch.setattr(reservations, "publish", publish_late)
    assert upkeep.reconcile()["rebuilt"] == 1
    upkeep.reconcile()
    assert [index_of(reservations, job) for job in (running, gone, born[0])] == [
        [], [], [Index.READY],
    ]  # fmt: skip
    assert [job.id for job in claim(queue)] == [born[0].id]


def test_a_rebuild_that_the_ledger_stops_lets_the_next_begin(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    job = queue.create(new())
    reservations.client.flushall()

    def away(*_: object, **__: object) -> Sequence[Job]:
        raise errors.LedgerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr("broker.ledger.scans.waiting", away)
        with pytest.raises(errors.LedgerUnavailable):
            queue.index.rebuild("remote")
    assert queue.index.rebuild("remote")
    assert [one.id for one in claim(queue)] == [job.id]


@pytest.mark.parametrize("step", ["fill", "build"])
def test_a_rebuild_that_redis_loses_midway_is_no_success(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch, step: str
):
    queue.create(new())
    queue.create(new())
    claim(queue)
    real = getattr(reservations, step)

    def step_then_flush(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        reservations.client.flushall()

    with monkeypatch.context() as patch:
        patch.setattr(reservations, step, step_then_flush)
        assert not queue.index.rebuild("remote")
    assert reservations.generation("remote") is None
    assert queue.index.rebuild("remote")


def test_an_index_of_many_pages_is_whole(
    queue: JobQueue,
    reservations: Reservations,
    upkeep: Upkeep,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("broker.indexing.PAGE", 2)
    # each page has a lane that those before it have not
    made = [queue.create(new(type=f"t{n // 2}")) for n in range(12)]
    granted = claim(queue, max_jobs=5)
    queue.fail(granted[0].id, holder(granted[0]), error_message="e", retryable=True)
    reservations.client.flushall()
    assert queue.index.rebuild("remote")
    places = {job.id: index_of(reservations, job) for job in made}
    assert places == {job.id: [Index.READY] for job in made} | {
        job.id: [Index.RESERVED] for job in granted
    } | {granted[0].id: [Index.SCHEDULED]}
    assert upkeep.reconcile() == {"rebuilt": 0, "repaired": 0}
    assert {job.id for job in claim(queue, max_jobs=99)} == {job.id for job in made[5:]}


@pytest.mark.parametrize("step", ["fill", "build"])
def test_a_rebuild_that_fails_while_the_next_page_is_read_leaves_nothing_open(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch, step: str
):
    monkeypatch.setattr("broker.indexing.PAGE", 2)
    made = [queue.create(new()) for _ in range(14)]
    claim(queue, max_jobs=7)
    real, calls = getattr(reservations, step), []

    def third_fails(*args: Any, **kwargs: Any) -> None:
        calls.append(threading.current_thread())
        if len(calls) == 3:
            raise errors.ReservationsUnavailable
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(reservations, step, third_fails)
        with pytest.raises(errors.ReservationsUnavailable):
            queue.index.rebuild("remote")
    assert len(calls) == 3
    assert not any(thread.is_alive() for thread in calls)
    # the ledger allows this thread one transaction, and Redis one builder
    assert queue.index.rebuild("remote")
    assert [index_of(reservations, job) for job in made[7:]] == [[Index.READY]] * 7


def test_a_job_that_is_given_while_a_rebuild_runs_lies_where_its_holder_is(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    job = queue.create(new())
    fill = reservations.fill

    def fill_then_claim(*args: Any, **kwargs: Any) -> None:
        fill(*args, **kwargs)
        assert [one.id for one in claim(queue)] == [job.id]

    with monkeypatch.context() as patch:
        # by the generation that still counts
        patch.setattr(reservations, "fill", fill_then_claim)
        assert queue.index.rebuild("remote")
    assert index_of(reservations, job) == [Index.RESERVED]
    assert claim(queue, "other") == []


def test_deadlines_of_another_server_end_no_lease(
    queue: JobQueue, reservations: Reservations, upkeep: Upkeep, clock: SetClock
):
    queue.create(new())
    [granted] = claim(queue)
    clock.advance(50)
    queue.heartbeat(granted.id, holder(granted), lease_seconds=60)
    # restored from before that heartbeat
    keys = QueueKeys("remote", reservations.generation("remote") or 0)
    reservations.client.zincrby(f"{keys.prefix}reserved", -50_000, granted.id)
    reservations.client.set(keys.mark, f"{0}:{'0' * 40}")
    clock.advance(30)
    assert upkeep.expire() == 0
    assert reservations.generation("remote") == keys.generation + 1
    queue.heartbeat(granted.id, holder(granted), lease_seconds=60)
    assert queue.complete(granted.id, holder(granted)).status is Status.SUCCEEDED


# -- heartbeats that Redis does not hear of ---------------------------------------------------


def test_a_heartbeat_kept_by_the_ledger_alone_takes_the_grant_up(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new(max_attempts=1))
    with monkeypatch.context() as patch:
        patch.setattr(queue._claims, "_confirm", lambda *_: None)
        [granted] = claim(queue, claim_key="k", lease_seconds=90)
    unseen(
        queue, monkeypatch,
        lambda: queue.heartbeat(granted.id, holder(granted), lease_seconds=90),
    )  # fmt: skip
    clock.advance(31)
    assert upkeep.expire() == 0
    assert queue.complete(granted.id, holder(granted)).status is Status.SUCCEEDED


def test_a_job_that_another_process_gave_is_found_once_and_remembered(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    other = JobQueue(queue.ledger, reservations, clock=queue.clock, settings=queue.settings)
    for name in ("a", "b", "c"):
        queue.create(new(queue=name))
        claim(other, f"w-{name}")
    queue.create(new(queue="d"))
    [granted] = claim(queue)
    other.heartbeat(granted.id, holder(granted), lease_seconds=60)
    asked: list[str] = []
    renew = reservations.renew

    def counted(name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return renew(name, *args, **kwargs)

    monkeypatch.setattr(reservations, "renew", counted)
    for _ in range(3):
        other.heartbeat(granted.id, holder(granted), lease_seconds=60)
    assert asked == ["d", "d", "d"]


# -- locks ------------------------------------------------------------------------------------


#: SQLite has one writer at a time: no order to keep, nobody to wait for
ON_POSTGRES = pytest.mark.parametrize(
    "ledger_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@ON_POSTGRES
def test_a_batch_locks_its_jobs_in_one_order(queue: JobQueue, ledger: Ledger):
    first, last = sorted(queue.create(new()).id for _ in range(2))
    one = sa.select(job_rows.jobs.c.id).with_for_update(nowait=True)
    granted: list[Job] = []
    waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with ledger.write() as conn:
        conn.execute(one.where(job_rows.jobs.c.id == last))
        thread = threading.Thread(target=lambda: granted.extend(claim(queue, max_jobs=2)))
        thread.start()

        def waiting() -> bool:
            with ledger.engine.connect() as other:
                return bool(other.scalar(waits))

        until(waiting, 10, "the claim waits for the row held here")
        # it holds the first already; in any other order it would not
        with ledger.engine.connect() as other, pytest.raises(sa.exc.OperationalError):
            other.execute(one.where(job_rows.jobs.c.id == first))
    thread.join(10)
    assert {job.id for job in granted} == {first, last}


@ON_POSTGRES
def test_a_sweep_waits_for_no_row(queue: JobQueue, ledger: Ledger, upkeep: Upkeep, clock: SetClock):
    held, free = (queue.create(new(expires_at=clock.now())) for _ in range(2))
    with ledger.write() as conn:
        job_rows.get(conn, held.id, lock=True)
        swept: list[int] = []
        thread = threading.Thread(target=lambda: swept.append(upkeep.expire()))
        thread.start()
        thread.join(10)
        assert swept == [1]
    assert queue.catalog.get(free.id).status is Status.CANCELLED
    assert upkeep.expire() == 1
