"""Claims in the moments that are rare: a parallel answer, an expired head, two queues, no place."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from broker import errors
from broker.ledger.intake import job_id_of
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import Job, NewEvent
from broker.reservations.shapes import Reserved
from broker.reservations.store import Reservations
from broker.states import Index, Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new


def index_of(reservations: Reservations, job: Job) -> list[Index]:
    """Name the indexes a job lies in."""
    client = reservations.client
    prefix = f"{{db:{job.queue}}}:g{reservations.generation(job.queue)}:"
    found = [
        index
        for index in (Index.SCHEDULED, Index.GRANTING, Index.RESERVED)
        if client.zscore(prefix + index, job.id) is not None
    ]
    if client.zscore(f"{prefix}lane:{job.lane}", job.member) is not None:
        found.append(Index.READY)
    return found


def between(
    monkeypatch: pytest.MonkeyPatch, queue: JobQueue, then: Callable[[], object]
) -> list[Reserved]:
    """Let something happen once, between a claim's hold in Redis and its grant."""
    seen: list[Reserved] = []
    reserve = queue.reservations.reserve

    def reserve_then(*args: Any, **kwargs: Any) -> Reserved:
        held = reserve(*args, **kwargs)
        seen.append(held)
        if len(seen) == 1:
            then()
        return held

    monkeypatch.setattr(queue.reservations, "reserve", reserve_then)
    return seen


# -- what a claim does not get goes back ------------------------------------------------------


def test_a_claim_that_a_parallel_one_has_answered_gives_back_what_it_held(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    first, second = queue.create(new()), queue.create(new())
    answers: list[list[Job]] = []
    between(monkeypatch, queue, lambda: answers.append(claim(queue, claim_key="k")))
    assert claim(queue, claim_key="k") == answers[0]
    assert [job.id for job in answers[0]] == [second.id]
    assert index_of(reservations, first) == [Index.READY]
    assert [job.id for job in claim(queue, "w2")] == [first.id]


def test_a_claim_whose_key_was_just_used_for_another_gives_back_what_it_held(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    first, _ = queue.create(new()), queue.create(new())
    between(monkeypatch, queue, lambda: claim(queue, claim_key="k", lease_seconds=90))
    with pytest.raises(errors.InvalidPayload):
        claim(queue, claim_key="k")
    assert index_of(reservations, first) == [Index.READY]


def test_a_claim_that_found_nothing_asks_the_ledger_no_more_when_it_is_woken(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    # however slow the machine
    monkeypatch.setattr("broker.claims.QUEUES_S", 3600.0)
    queue.create(new())
    claim(queue)
    assert claim(queue, claim_key="k") == []
    job = queue.create(new())

    def looks(*_: object) -> NoReturn:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(queue._claims, "_look", looks)
        [granted] = claim(queue, claim_key="k")
    assert granted.id == job.id
    # from now on it is a repeat, whatever else there is
    queue.create(new())
    assert claim(queue, claim_key="k") == [granted]


def test_a_claim_beyond_its_limit_gives_back_what_it_held(
    queue: JobQueue, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
):
    first, _ = queue.create(new()), queue.create(new())
    policy = Policy(max_concurrency=1)
    held = between(monkeypatch, queue, lambda: claim(queue, policy=policy))
    assert claim(queue, policy=policy) == []
    assert held[0].ids == (first.id,)
    assert index_of(reservations, first) == [Index.READY]


def test_a_worker_without_a_free_place_touches_no_job(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new())
    queue.create(new())
    policy = Policy(max_concurrency=1)
    assert len(claim(queue, policy=policy)) == 1
    held = between(monkeypatch, queue, lambda: None)
    assert claim(queue, policy=policy) == []
    assert held == []


def test_a_batch_is_cut_to_the_free_places(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    for _ in range(5):
        queue.create(new())
    policy = Policy(max_concurrency=3)
    assert len(claim(queue, policy=policy)) == 1
    held = between(monkeypatch, queue, lambda: None)
    assert len(claim(queue, policy=policy, max_jobs=5)) == 2
    assert len(held[0].ids) == 2


def test_a_sweep_that_fails_costs_the_claim_nothing(
    queue: JobQueue, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new())
    claim(queue, lease_seconds=15)
    second = queue.create(new())
    clock.advance(16)

    def away(*_: object, **__: object) -> int:
        raise errors.ReservationsUnavailable

    monkeypatch.setattr(queue.expiry, "end_due", away)
    assert [job.id for job in claim(queue, "w2")] == [second.id]


# -- expired jobs -----------------------------------------------------------------------------


def test_expired_jobs_do_not_stand_in_the_way(queue: JobQueue, clock: SetClock):
    soon = clock.now() + timedelta(seconds=5)
    expired = [queue.create(new(expires_at=soon, priority=9)) for _ in range(4)]
    good = queue.create(new())
    clock.advance(6)
    assert [job.id for job in claim(queue)] == [good.id]
    for job in expired:
        ended = queue.catalog.get(job.id)
        assert (ended.status, ended.reason) == (Status.CANCELLED, "expired")


def test_a_batch_ends_what_expired_and_keeps_the_rest(
    queue: JobQueue, clock: SetClock, reservations: Reservations
):
    soon = clock.now() + timedelta(seconds=5)
    expired = [queue.create(new(expires_at=soon)) for _ in range(9)]
    good = [queue.create(new()).id for _ in range(3)]
    clock.advance(6)
    assert [job.id for job in claim(queue, max_jobs=12)] == good
    assert {queue.catalog.get(job.id).status for job in expired} == {Status.CANCELLED}
    assert [index_of(reservations, job) for job in expired] == [[]] * 9


def test_a_job_due_within_the_millisecond_is_not_refused(queue: JobQueue, clock: SetClock):
    clock.moment = clock.moment.replace(microsecond=400)
    job = queue.create(new(not_before=clock.now() + timedelta(seconds=1, microseconds=300)))
    clock.advance(1)
    seen = []
    for _ in range(4):
        seen += claim(queue)
        clock.advance(0.001)
    assert [one.id for one in seen] == [job.id]


def test_a_clock_that_was_ahead_puts_no_retry_off(queue: JobQueue, clock: SetClock, upkeep: Upkeep):
    clock.advance(3600)
    failed, lost = queue.create(new()), queue.create(new())
    clock.advance(-3600)
    [granted, _] = claim(queue, max_jobs=2)
    back = queue.fail(failed.id, holder(granted), error_message="e", retryable=True)
    assert back.next_attempt_at is not None
    assert 11 < (back.next_attempt_at - clock.now()).total_seconds() < 19
    clock.advance(61)
    upkeep.expire()
    again = queue.catalog.get(lost.id).next_attempt_at
    assert again is not None
    assert 22 < (again - clock.now()).total_seconds() < 38


# -- several queues ---------------------------------------------------------------------------


def test_a_queue_that_others_emptied_does_not_hide_the_next(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    queue.create(new(queue="q1", priority=9))
    second = queue.create(new(queue="q2"))
    by_head = queue._claims._by_head
    stolen: list[Job] = []

    def by_head_then(*args: Any) -> list[str]:
        found = by_head(*args)
        if not stolen:
            stolen.extend(claim(JobQueue(
                queue.ledger, queue.reservations, clock=queue.clock, settings=queue.settings
            ), "thief"))  # fmt: skip
        return found

    monkeypatch.setattr(queue._claims, "_by_head", by_head_then)
    assert [job.id for job in claim(queue)] == [second.id]
    assert stolen[0].queue == "q1"


def test_a_retry_that_a_look_at_two_queues_finds_due_wakes_who_waits(
    queue: JobQueue, clock: SetClock, reservations: Reservations
):
    queue.create(new(queue="q2", priority=9))
    queue.create(new(queue="q1", not_before=clock.now() + timedelta(seconds=5)))
    clock.advance(6)
    wakes = reservations.wakes(timeout_s=5)
    assert next(wakes) is None
    assert claim(queue)[0].queue == "q2"
    told = next(wakes)
    while told is None or told[0] != "q1":
        told = next(wakes)
    assert told[2] == 1
    wakes.close()


# -- keys -------------------------------------------------------------------------------------


def test_a_repeated_batch_comes_in_the_same_order(queue: JobQueue):
    for priority in (0, 5, 0, 7):
        queue.create(new(priority=priority))
    first = claim(queue, claim_key="k", max_jobs=4)
    assert [job.priority for job in first] == [7, 5, 0, 0]
    assert claim(queue, claim_key="k", max_jobs=4) == first


def test_a_repeat_after_the_lease_ended_names_that_lease_and_not_the_one_open_now(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
):
    queue.create(new())
    [first] = claim(queue, claim_key="k1")
    clock.advance(31)
    assert upkeep.expire() == 1
    [second] = claim(queue, claim_key="k2")
    [repeat] = claim(queue, claim_key="k1")
    assert (repeat.id, repeat.lease_id, repeat.fence) == (first.id, first.lease_id, first.fence)
    assert repeat.lease_id != second.lease_id
    with pytest.raises(errors.LeaseLost):
        queue.heartbeat(repeat.id, holder(repeat), lease_seconds=60)
    assert queue.complete(second.id, holder(second)).status is Status.SUCCEEDED


# -- grants whose confirmation was lost -------------------------------------------------------


@pytest.fixture
def unconfirmed(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Grant a job, and die before Redis hears of it."""
    queue.create(new(max_attempts=1))
    with monkeypatch.context() as patch:
        patch.setattr(queue._claims, "_confirm", lambda *_: None)
        return claim(queue, claim_key="k")[0]


def test_an_unconfirmed_grant_that_nobody_takes_up_goes_back_at_no_cost(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock, reservations: Reservations, unconfirmed: Job
):
    clock.advance(11)
    assert upkeep.expire() == 0
    assert index_of(reservations, unconfirmed) == [Index.GRANTING]
    clock.advance(20)
    assert upkeep.expire() == 1
    back = queue.catalog.get(unconfirmed.id)
    assert (back.status, back.attempt) == (Status.QUEUED, 1)
    assert [a.outcome for a in queue.catalog.attempts(back.id)] == ["undelivered"]


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("call", ["heartbeat", "event"])
def test_an_unconfirmed_grant_can_be_taken_up(
    queue: JobQueue,
    upkeep: Upkeep,
    clock: SetClock,
    reservations: Reservations,
    unconfirmed: Job,
    call: str,
    sweep: bool,
):
    if sweep:
        clock.advance(11)
        assert upkeep.expire() == 0
    if call == "heartbeat":
        queue.heartbeat(unconfirmed.id, holder(unconfirmed), lease_seconds=60)
    else:
        queue.append_events(unconfirmed.id, holder(unconfirmed), [NewEvent(message="here")])
    clock.advance(31)
    assert upkeep.expire() == 0
    assert index_of(reservations, unconfirmed) == [Index.RESERVED]
    done = queue.complete(unconfirmed.id, holder(unconfirmed))
    assert done.status is Status.SUCCEEDED


def test_a_confirmation_that_comes_late_undoes_nothing(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock, reservations: Reservations, unconfirmed: Job
):
    queue.heartbeat(unconfirmed.id, holder(unconfirmed), lease_seconds=60)
    asked = queue.cancel(unconfirmed.id, reason="stop")
    reservations.confirm(
        unconfirmed.queue, [(unconfirmed.id, unconfirmed.version, "{}")],
        lease_id=unconfirmed.lease_id or "", index=Index.GRANTING, hold_ms=30_000,
        lease_ms=60_000,
    )  # fmt: skip
    assert index_of(reservations, unconfirmed) == [Index.RESERVED]
    beat = queue.heartbeat(unconfirmed.id, holder(unconfirmed), lease_seconds=60)
    assert beat.job.cancel_requested_at == asked.cancel_requested_at


# -- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spell", [str.upper, "{{{}}}".format, lambda text: text.replace("-", "")])
def test_another_spelling_of_an_id_is_another_task(queue: JobQueue, spell: Callable[[str], str]):
    one = new()
    other = new(task_id=spell(one.task_id))
    both = queue.ingest([one, other])
    assert [outcome.outcome for outcome in both] == ["new", "new"]
    assert [o.outcome for o in queue.ingest([other, one])] == ["duplicate", "duplicate"]
    found = queue.catalog.find(other.task_id)
    assert found is not None
    assert found.task_id == other.task_id


def test_an_id_that_hides_behind_anothers_blocks_nobody(queue: JobQueue):
    plain = new(task_id="plain")
    [made] = queue.ingest([plain])
    assert made.job is not None
    forged = new(task_id=made.job.id)
    good = new()
    assert [one.outcome for one in queue.ingest([forged, good])] == ["conflict", "new"]
    together = [new(task_id="plain2"), new(task_id=job_id_of("plain2"))]
    assert [one.outcome for one in queue.ingest(together)] == ["new", "conflict"]
