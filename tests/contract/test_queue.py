"""What the queue promises, on both databases and a real Valkey."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from broker import errors
from broker.ledger.engine import Ledger
from broker.ledger.outbox import outbox
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewEvent, NewJob, Rejection, StoredFile
from broker.reservations.store import Reservations
from broker.states import Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock


def new(**values: Any) -> NewJob:
    """Make a job with a fresh id."""
    return NewJob(**{"task_id": str(uuid4()), "queue": "remote", "type": "echo"} | values)


def claim(queue: JobQueue, worker: str = "w1", **values: Any) -> list[Job]:
    """Claim as a worker whose token restricts nothing."""
    request = {"worker_id": worker, "policy": Policy(), "lease_seconds": 60} | values
    return queue.claim(ClaimRequest(**request))


def holder(job: Job) -> Holder:
    """Speak as whoever holds a job."""
    assert job.claimed_by is not None
    return Holder(worker_id=job.claimed_by, lease_id=job.lease_id)


def told(ledger: Ledger, job: Job) -> Sequence[str]:
    """List the effects of a job by kind and what they say."""
    with ledger.read() as conn:
        rows = conn.execute(
            sa.select(outbox).where(outbox.c.job_id == job.id).order_by(outbox.c.seq)
        ).all()
    return [f"{row.kind}:{row.data.get('type') or row.data.get('state') or ''}" for row in rows]


def titles(queue: JobQueue, job: Job) -> list[str]:
    """List the messages of a job's log."""
    return [event.message for event in queue.catalog.events(job.id)]


def test_a_job_runs_once_from_create_to_complete(queue: JobQueue, ledger: Ledger) -> None:
    job = queue.create(new(payload={"x": "\u0000 ü", "n": 2**60}))
    assert (job.status, job.attempt, job.fence) == (Status.QUEUED, 1, 0)

    [granted] = claim(queue)
    assert granted.id == job.id
    assert (granted.status, granted.fence, granted.claimed_by) == (Status.RUNNING, 1, "w1")
    assert granted.payload == {"x": "\u0000 ü", "n": 2**60}
    assert claim(queue, "w2") == []

    beat = queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    assert beat.job.id == job.id
    done = queue.complete(job.id, holder(granted), result={"a": [1, None]}, result_summary="ok")
    assert (done.status, done.result, done.lease_id) == (Status.SUCCEEDED, {"a": [1, None]}, None)
    assert queue.catalog.get(job.id) == done
    assert titles(queue, job) == ["Job queued", "Job claimed", "Job completed"]
    assert told(ledger, job) == [
        "event:task-received", "state:STARTED", "event:task-started",
        "store:SUCCESS", "event:task-succeeded",
    ]  # fmt: skip
    [attempt] = queue.catalog.attempts(job.id)
    assert (attempt.outcome, attempt.worker_id, attempt.fence) == ("succeeded", "w1", 1)


def test_order_is_priority_then_enqueue_order_across_lanes(queue: JobQueue) -> None:
    created = [
        queue.create(new(type=kind, priority=priority))
        for kind, priority in [("a", 0), ("b", 5), ("a", 5), ("c", -1), ("b", 0)]
    ]
    expected = [created[i].id for i in (1, 2, 0, 4, 3)]
    assert [claim(queue)[0].id for _ in created] == expected
    assert claim(queue) == []


def test_order_across_queues_is_the_same(queue: JobQueue) -> None:
    created = [
        queue.create(new(queue=name, priority=priority))
        for name, priority in [("q1", 0), ("q2", 5), ("q1", 5), ("q2", 0)]
    ]
    expected = [created[i].id for i in (1, 2, 0, 3)]
    assert [claim(queue)[0].id for _ in created] == expected


def test_a_worker_is_given_only_what_its_policy_allows(queue: JobQueue) -> None:
    queue.create(new(type="codex_exec", payload={"repository": "Evil/Repo"}))
    queue.create(new(type="echo", payload={"requiredCapabilities": ["gpu"]}))
    good = queue.create(new(type="codex_exec", payload={"repository": "git@github.com:Org/App"}))
    policy = Policy(types=("codex_exec",), repositories=("github.com/org/*",))
    [granted] = claim(queue, policy=policy)
    assert granted.id == good.id
    assert claim(queue, policy=policy) == []
    assert claim(queue, policy=Policy(types=())) == []
    assert claim(queue, policy=Policy(types=("echo",))) == []
    assert len(claim(queue, policy=Policy(capabilities=("gpu", "x"), types=("echo",)))) == 1


def test_a_claim_key_gives_the_same_lease_again(queue: JobQueue) -> None:
    queue.create(new())
    queue.create(new())
    [first] = claim(queue, claim_key="k")
    [again] = claim(queue, claim_key="k")
    assert (again.id, again.lease_id, again.fence) == (first.id, first.lease_id, first.fence)
    [other] = claim(queue, "w2", claim_key="k")
    assert other.id != first.id
    with pytest.raises(errors.InvalidPayload):
        claim(queue, claim_key="k", lease_seconds=61)


def test_a_claim_key_is_remembered_through_a_flush(
    queue: JobQueue, reservations: Reservations
) -> None:
    queue.create(new())
    queue.create(new())
    [first] = claim(queue, claim_key="k")
    reservations.client.flushall()
    [again] = claim(queue, claim_key="k")
    assert (again.id, again.lease_id) == (first.id, first.lease_id)


def test_repeats_of_complete_are_answered_alike_and_others_refused(queue: JobQueue) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    done = queue.complete(job.id, holder(granted), result=1)
    assert queue.complete(job.id, holder(granted), result=1) == done
    for call in (
        lambda: queue.complete(job.id, holder(granted), result=2),
        lambda: queue.complete(job.id, Holder(worker_id="w1"), result=1),
        lambda: queue.fail(job.id, holder(granted), error_message="x"),
        lambda: queue.complete(job.id, Holder(worker_id="w2", lease_id=granted.lease_id), result=1),
        lambda: queue.heartbeat(job.id, holder(granted), lease_seconds=60),
        lambda: queue.append_events(job.id, holder(granted), [NewEvent(message="x")]),
        lambda: queue.cancel(job.id),
    ):
        with pytest.raises(errors.JobStateConflict):
            call()
    assert queue.catalog.get(job.id) == done


def test_a_stranger_changes_nothing(queue: JobQueue) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    file = StoredFile(digest="sha256:00", size_bytes=1, storage_path="sha256/00/00")
    for who, refusal in (
        (Holder(worker_id="w2"), errors.OwnershipMismatch),
        (Holder(worker_id="w2", lease_id=granted.lease_id), errors.OwnershipMismatch),
        (Holder(worker_id="w1", lease_id="stale"), errors.LeaseLost),
    ):
        for call in (
            lambda who=who: queue.heartbeat(job.id, who, lease_seconds=60),
            lambda who=who: queue.complete(job.id, who),
            lambda who=who: queue.fail(job.id, who, error_message="x"),
            lambda who=who: queue.release(job.id, who),
            lambda who=who: queue.cancel_ack(job.id, who),
            lambda who=who: queue.append_events(job.id, who, [NewEvent(message="x")]),
        ):
            with pytest.raises(refusal):
                call()
        with pytest.raises((errors.NotAuthorized, errors.LeaseLost)):
            queue.add_artifact(job.id, who, name="n", content_type=None, file=file)
    assert queue.catalog.get(job.id) == granted
    with pytest.raises(errors.JobNotFound):
        queue.complete(str(uuid4()), holder(granted))


def test_retries_back_off_and_end_in_the_dead_letter(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock, ledger: Ledger
) -> None:
    job = queue.create(new(max_attempts=2))
    [granted] = claim(queue)
    failed = queue.fail(job.id, holder(granted), error_message="boom", retryable=True)
    assert (failed.status, failed.attempt, failed.claimed_by) == (Status.QUEUED, 2, None)
    assert failed.next_attempt_at is not None
    delay = (failed.next_attempt_at - clock.now()).total_seconds()
    assert 15 * 0.75 <= delay <= 15 * 1.25
    assert queue.fail(job.id, holder(granted), error_message="boom", retryable=True) == failed

    clock.advance(delay - 0.01)
    assert upkeep.promote() == 0
    assert claim(queue) == []
    clock.advance(0.02)
    assert upkeep.promote() == 1
    [again] = claim(queue)
    assert (again.fence, again.attempt) == (2, 2)
    dead = queue.fail(job.id, holder(again), error_message="boom 2", retryable=True)
    assert (dead.status, dead.error_message) == (Status.DEAD_LETTER, "boom 2")
    assert told(ledger, job)[-4:] == [
        "state:STARTED", "event:task-started", "store:FAILURE", "event:task-failed",
    ]  # fmt: skip
    assert [a.outcome for a in queue.catalog.attempts(job.id)] == ["failed", "failed"]


def test_a_due_retry_is_found_by_the_claim_itself(queue: JobQueue, clock: SetClock) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    queue.fail(job.id, holder(granted), error_message="boom", retryable=True, retry_after_s=3)
    assert claim(queue) == []
    clock.advance(3.1)
    assert [one.id for one in claim(queue)] == [job.id]


def test_a_lost_lease_is_offered_again_and_its_holder_shut_out(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    clock.advance(59)
    assert upkeep.expire() == 0
    queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    clock.advance(59)
    assert upkeep.expire() == 0
    clock.advance(2)
    assert upkeep.expire() == 1
    assert upkeep.expire() == 0
    lost = queue.catalog.get(job.id)
    assert (lost.status, lost.attempt) == (Status.QUEUED, 2)
    with pytest.raises(errors.JobStateConflict):
        queue.complete(job.id, holder(granted))
    clock.advance(30 * 1.25 + 0.1)
    [again] = claim(queue, "w2")
    assert (again.fence, again.attempt) == (2, 2)
    with pytest.raises(errors.OwnershipMismatch):
        queue.complete(job.id, holder(granted))
    assert queue.complete(job.id, holder(again)).status is Status.SUCCEEDED


def test_an_untaken_grant_goes_back_at_no_cost(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    job = queue.create(new(max_attempts=1))
    [granted] = claim(queue, claim_key="k1")
    clock.advance(29)
    assert upkeep.expire() == 0
    clock.advance(2)
    assert upkeep.expire() == 1
    back = queue.catalog.get(job.id)
    assert (back.status, back.attempt) == (Status.QUEUED, 1)
    with pytest.raises(errors.JobStateConflict):
        queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    [again] = claim(queue, claim_key="k2")
    assert (again.attempt, again.fence) == (1, 2)


@pytest.mark.parametrize("call", ["heartbeat", "event"])
def test_any_call_takes_a_grant_up(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock, call: str
) -> None:
    job = queue.create(new())
    [granted] = claim(queue, instance_id="i")
    if call == "heartbeat":
        queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    else:
        queue.append_events(job.id, holder(granted), [NewEvent(message="hi")])
    clock.advance(45)
    assert upkeep.expire() == 0
    assert queue.complete(job.id, holder(granted)).status is Status.SUCCEEDED


def test_a_base_claim_holds_its_whole_lease_at_once(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    queue.create(new())
    claim(queue, lease_seconds=120)
    clock.advance(119)
    assert upkeep.expire() == 0
    clock.advance(2)
    assert upkeep.expire() == 1


def test_running_jobs_keep_their_lease_through_a_flush(
    queue: JobQueue, upkeep: Upkeep, reservations: Reservations, clock: SetClock
) -> None:
    waiting = [queue.create(new()) for _ in range(3)]
    [granted] = claim(queue, claim_key="k")
    clock.advance(50)
    queue.heartbeat(granted.id, holder(granted), lease_seconds=60)
    reservations.client.flushall()
    # beyond what it was granted: that it was extended, the index alone knew
    clock.advance(30)
    assert upkeep.reconcile()["rebuilt"] == 1
    assert upkeep.expire() == 0
    queue.heartbeat(granted.id, holder(granted), lease_seconds=60)
    assert [claim(queue)[0].id for _ in range(2)] == [job.id for job in waiting[1:]]
    assert claim(queue) == []
    assert queue.complete(granted.id, holder(granted)).status is Status.SUCCEEDED


def test_a_flush_between_hold_and_grant_grants_once(
    queue: JobQueue, reservations: Reservations
) -> None:
    job = queue.create(new())
    reservations.client.flushall()
    [granted] = claim(queue)
    reservations.client.flushall()
    assert claim(queue, "w2") == []
    beat = queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    assert beat.job.fence == 1


def test_what_was_not_indexed_is_found_by_reconcile(
    queue: JobQueue, upkeep: Upkeep, reservations: Reservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.create(new())
    with monkeypatch.context() as patch:
        patch.setattr(queue.index, "put", lambda *_, **__: None)
        job = queue.create(new(priority=9))
    assert upkeep.reconcile()["repaired"] >= 1
    assert claim(queue)[0].id == job.id


def test_cancel_of_a_queued_job_ends_it(queue: JobQueue, ledger: Ledger) -> None:
    job = queue.create(new())
    ended = queue.cancel(job.id, reason="no", requested_by="op")
    assert (ended.status, ended.cancel_reason) == (Status.CANCELLED, "no")
    assert queue.cancel(job.id) == ended
    assert claim(queue) == []
    assert told(ledger, job)[-2:] == ["store:REVOKED", "event:task-revoked"]


def test_cancel_of_a_running_job_reaches_its_holder(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    with pytest.raises(errors.JobStateConflict):
        queue.cancel_ack(job.id, holder(granted))
    asked = queue.cancel(job.id, reason="stop")
    assert asked.status is Status.RUNNING
    assert queue.cancel(job.id).cancel_requested_at == asked.cancel_requested_at
    beat = queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    assert beat.job.cancel_requested_at == asked.cancel_requested_at
    ended = queue.cancel_ack(job.id, holder(granted))
    assert ended.status is Status.CANCELLED
    assert queue.cancel_ack(job.id, holder(granted)) == ended
    clock.advance(120)
    assert upkeep.expire() == 0


def test_a_complete_that_arrives_while_cancel_is_asked_wins(queue: JobQueue) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    queue.cancel(job.id)
    assert queue.complete(job.id, holder(granted)).status is Status.SUCCEEDED


@pytest.mark.parametrize("call", ["fail", "release"])
def test_a_cancelled_job_is_not_offered_again(queue: JobQueue, call: str) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    queue.cancel(job.id)
    if call == "fail":
        ended = queue.fail(job.id, holder(granted), error_message="x", retryable=True)
    else:
        ended = queue.release(job.id, holder(granted))
    assert ended.status is Status.CANCELLED


def test_a_cancel_that_nobody_acknowledges_ends_after_its_grace(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    queue.cancel(job.id)
    clock.advance(50)
    queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    assert upkeep.expire() == 0
    clock.advance(11)
    assert upkeep.expire() == 1
    assert queue.catalog.get(job.id).status is Status.CANCELLED


def test_release_costs_no_attempt(queue: JobQueue) -> None:
    job = queue.create(new(max_attempts=1))
    [granted] = claim(queue)
    back = queue.release(job.id, holder(granted))
    assert (back.status, back.attempt, back.claimed_by) == (Status.QUEUED, 1, None)
    assert queue.release(job.id, holder(granted)) == back
    [again] = claim(queue, "w2")
    assert (again.fence, again.attempt) == (2, 1)


def test_expires_is_kept_at_claim_and_by_the_sweep(
    queue: JobQueue, upkeep: Upkeep, clock: SetClock
) -> None:
    job = queue.create(new(expires_at=clock.now() + timedelta(seconds=5)))
    clock.advance(6)
    assert claim(queue) == []
    ended = queue.catalog.get(job.id)
    assert (ended.status, ended.reason) == (Status.CANCELLED, "expired")
    swept = queue.create(new(expires_at=clock.now() + timedelta(seconds=5)))
    clock.advance(6)
    assert upkeep.expire() == 1
    ended = queue.catalog.get(swept.id)
    assert (ended.status, ended.reason) == (Status.CANCELLED, "expired")


def test_eta_holds_a_job_back(queue: JobQueue, clock: SetClock) -> None:
    job = queue.create(new(not_before=clock.now() + timedelta(seconds=5)))
    assert claim(queue) == []
    clock.advance(5.1)
    assert [one.id for one in claim(queue)] == [job.id]


def test_max_concurrency_counts_in_the_grant(queue: JobQueue) -> None:
    for _ in range(3):
        queue.create(new())
    policy = Policy(max_concurrency=2)
    granted = claim(queue, policy=policy, max_jobs=3)
    assert len(granted) == 2
    assert len({job.lease_id for job in granted}) == 1
    assert claim(queue, policy=policy) == []
    queue.complete(granted[0].id, holder(granted[0]))
    assert len(claim(queue, policy=policy)) == 1


def test_ingest_takes_each_task_once(queue: JobQueue, ledger: Ledger) -> None:
    first, second = new(), new(task_id="not-a-uuid")
    bad = Rejection(task_id=str(uuid4()), queue="remote", type="x", reason="not JSON")
    outcomes = queue.ingest([first, second, bad])
    assert [one.outcome for one in outcomes] == ["new", "new", "rejected"]
    again = queue.ingest([first, new(), first, bad])
    assert [one.outcome for one in again] == ["duplicate", "new", "duplicate", "duplicate"]
    conflict = queue.ingest([new(task_id=first.task_id, retries=1)])
    assert conflict[0].outcome == "conflict"
    job = queue.catalog.find(first.task_id)
    assert job is not None
    assert "ingest_conflict" in titles(queue, job)
    rejected = queue.catalog.find(bad.task_id)
    assert rejected is not None
    assert (rejected.status, rejected.reason) == (Status.FAILED, "rejected")
    assert "store:FAILURE" in told(ledger, rejected)
    assert len([claim(queue) for _ in range(4)][2]) == 1


def test_an_ingested_job_with_a_bad_repository_is_rejected(queue: JobQueue) -> None:
    bad = new(type="codex_exec", payload={"repository": "--upload-pack=x"})
    [outcome] = queue.ingest([bad])
    assert outcome.outcome == "rejected"
    assert claim(queue) == []


def test_idempotency_key_of_create_gives_the_same_job(queue: JobQueue) -> None:
    first = queue.create(new(idempotency_key="k", created_by="u", payload={"a": 1}))
    again = queue.create(new(idempotency_key="k", created_by="u", payload={"a": 1}))
    assert again.id == first.id
    assert queue.create(new(idempotency_key="k", created_by="v")).id != first.id
    with pytest.raises(errors.InvalidPayload):
        queue.create(new(idempotency_key="k", created_by="u", payload={"a": 2}))


def test_events_are_numbered_without_gaps_and_repeats_add_nothing(queue: JobQueue) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    batch = [NewEvent(message=f"m{i}", worker_seq=i) for i in range(3)]
    made = queue.append_events(job.id, holder(granted), batch)
    more = queue.append_events(
        job.id, holder(granted), [*batch[1:], NewEvent(message="m3", worker_seq=3)]
    )
    assert [event.seq for event in made] == [3, 4, 5]
    assert [event.seq for event in more] == [4, 5, 6]
    queue.append_events(job.id, holder(granted), [NewEvent(message="plain")])
    log = queue.catalog.events(job.id, after_seq=2)
    assert [event.message for event in log] == ["m0", "m1", "m2", "m3", "plain"]
    assert [event.seq for event in log] == [3, 4, 5, 6, 7]
    # the next holder numbers its own anew
    queue.release(job.id, holder(granted))
    [again] = claim(queue)
    [own] = queue.append_events(job.id, holder(again), [NewEvent(message="own", worker_seq=0)])
    assert (own.message, own.seq, own.fence) == ("own", 10, 2)


def test_artifacts_belong_to_a_lease_and_never_change(queue: JobQueue) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    file = StoredFile(digest="sha256:aa", size_bytes=3, storage_path="sha256/aa/aa")
    values: dict[str, Any] = {"name": "logs/x.log", "content_type": "text/plain", "file": file}
    made = queue.add_artifact(job.id, holder(granted), **values)
    assert queue.add_artifact(job.id, holder(granted), **values) == made
    other = StoredFile(digest="sha256:bb", size_bytes=3, storage_path="sha256/bb/bb")
    with pytest.raises(errors.ArtifactConflict):
        queue.add_artifact(job.id, holder(granted), **values | {"file": other})
    assert queue.catalog.artifacts(job.id) == [made]
    assert queue.catalog.artifact(job.id, made.id) == made
    with pytest.raises(errors.ArtifactJobMismatch):
        queue.catalog.artifact(queue.create(new()).id, made.id)


def test_pages_of_jobs_meet_without_gap_or_overlap(queue: JobQueue) -> None:
    made = [queue.create(new()).id for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = queue.catalog.page(limit=3, cursor=cursor)
        seen += [job.id for job in page]
        if cursor is None:
            break
    assert seen == made[::-1]
    with pytest.raises(errors.InvalidPayload):
        queue.catalog.page(cursor="nonsense")


def test_redis_away_keeps_every_promise_but_the_claim(
    queue: JobQueue, clock: SetClock, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.create(new())
    [granted] = claim(queue)
    away = Reservations.connect("redis://127.0.0.1:1/0")
    with monkeypatch.context() as patch:
        patch.setattr(queue, "reservations", away)
        patch.setattr(queue.index, "_reservations", away)
        patch.setattr(queue._claims, "reservations", away)
        later = queue.create(new())
        with pytest.raises(errors.ReservationsUnavailable):
            claim(queue)
        clock.advance(40)
        queue.heartbeat(job.id, holder(granted), lease_seconds=60)
        queue.append_events(job.id, holder(granted), [NewEvent(message="still here")])
    clock.advance(30)
    assert upkeep.expire() == 0, "the heartbeat that SQL answered must keep the lease"
    assert queue.complete(job.id, holder(granted)).status is Status.SUCCEEDED
    upkeep.reconcile()
    assert claim(queue)[0].id == later.id


def test_a_jobs_story_goes_forward_though_clocks_differ(queue: JobQueue, clock: SetClock) -> None:
    job = queue.create(new())
    clock.advance(-0.05)
    [granted] = claim(queue)
    assert granted.started_at is not None
    assert granted.started_at - job.created_at == timedelta(microseconds=1)
    queue.append_events(job.id, holder(granted), [NewEvent(message="m")])
    clock.advance(-0.05)
    done = queue.complete(job.id, holder(granted))
    assert done.finished_at is not None
    assert job.created_at < granted.started_at < done.finished_at
    moments = [event.created_at for event in queue.catalog.events(job.id)]
    assert moments == sorted(moments)
