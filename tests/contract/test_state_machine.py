"""The queue against a model of the contract: any calls in any order, on real stores.

Calls come late, twice and from strangers; processes die after their commit; Redis is emptied. At
home each run has a seed of its own, which a failure prints; in CI it is always the same one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import hypothesis
import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker import errors
from broker.clock import to_ms
from broker.ledger.engine import Ledger
from broker.ledger.models import AttemptRow, Base, BridgeStateRow, EventRow, JobRow, OutboxRow
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewEvent, NewJob, Rejection
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Index, Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.queue_model import LOST_S, Lease, ModelJob
from tests.services import in_ci

POLICIES: Final = {
    "w0": Policy(),
    "w1": Policy(max_concurrency=2),
    "w2": Policy(types=("a",), queues=("q1",)),
}
SIGNATURE: Final = {"task": "next"}
ENVELOPE: Final = {
    "headers": {},
    "embed": {
        "callbacks": [SIGNATURE, SIGNATURE], "errbacks": [SIGNATURE], "chain": [SIGNATURE],
        "chord": SIGNATURE,
    },
}  # fmt: skip
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
BEGINNING: Final = datetime(2030, 1, 1, microsecond=123_456, tzinfo=UTC)
#: tables whose one row comes with the migration
FIRST_ROWS: Final = {"bridge_state", "audit_head"}
#: of the run in CI, where the same code must get the same verdict every time
CI_SEED: Final = 20_301
WORKERS = st.sampled_from(sorted(POLICIES))
NUMBERS = st.integers(0, 99)
#: all entries of a queue's index: its name, member and score of each, or nil when it has none
ENTRIES: Final = """
local generation = redis.call('GET', ARGV[1] .. 'gen')
if not generation then return false end
local prefix, found = ARGV[1] .. 'g' .. generation .. ':', {}
local keys = redis.call('KEYS', prefix .. 'lane:*')
for _, name in ipairs({'scheduled', 'granting', 'reserved'}) do keys[#keys + 1] = prefix .. name end
for _, key in ipairs(keys) do
  for at, value in ipairs(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')) do
    if at % 2 == 1 then found[#found + 1] = string.sub(key, #prefix + 1) end
    found[#found + 1] = value
  end
end
return found
"""
#: what is wrong with the heads of a queue's lanes, or nil
HEADS: Final = """
local generation = redis.call('GET', ARGV[1] .. 'gen')
if not generation then return false end
local prefix, right = ARGV[1] .. 'g' .. generation .. ':', 0
for _, key in ipairs(redis.call('KEYS', prefix .. 'lane:*')) do
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local name = head[1] .. ' ' .. string.sub(key, #prefix + 6)
  if redis.call('ZSCORE', prefix .. 'heads', name) ~= head[2] then return 'missing: ' .. name end
  right = right + 1
end
if redis.call('ZCARD', prefix .. 'heads') ~= right then return 'some are none' end
return false
"""
REFUSALS = (errors.JobStateConflict, errors.OwnershipMismatch)


class QueueMachine(RuleBasedStateMachine):
    """Two processes, three workers, and whoever sweeps."""

    ledger: ClassVar[Ledger]
    redis_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.clock = SetClock()
        # nothing but the seed may tell two runs apart: jitter hangs on ids, rounding on the clock
        self.clock.moment = BEGINNING
        self.ids = count(1)
        client = Reservations.connect(self.redis_url).client
        client.flushall()
        client.close()
        with self.ledger.write() as conn:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name not in FIRST_ROWS:
                    conn.execute(table.delete())
            conn.execute(sa.update(BridgeStateRow).values(job_seq=0, last_created_at=EPOCH))
        self.processes = [self.process(), self.process()]
        self.upkeep = Upkeep(self.processes[0])
        self.jobs: dict[str, ModelJob] = {}
        #: every lease ever given: job, worker, lease id
        self.leases: list[tuple[str, str, str]] = []
        self.keys: dict[tuple[str, str], tuple[list[Job], Any]] = {}
        #: jobs whose last news did not reach the index
        self.unindexed: set[str] = set()
        #: jobs held by claims that died before the ledger heard of them
        self.limbo: set[str] = set()
        self.generations: dict[str, str | None] = {}

    def process(self) -> JobQueue:
        """Start a process; it knows nothing yet."""
        client = Reservations.connect(self.redis_url).client
        store = Reservations(client, now_ms=lambda: to_ms(self.clock.now()))
        queue = JobQueue(self.ledger, store, clock=self.clock, settings=QueueSettings())
        # else the real clock decides which claim sweeps
        queue._claims._may_sweep = lambda: True  # type: ignore[method-assign]
        return queue

    def teardown(self) -> None:
        for process in self.processes:
            process.reservations.close()

    # -- helpers -----------------------------------------------------------------------------

    @property
    def redis(self) -> Any:
        return self.processes[0].reservations.client

    def pick(self, number: int) -> ModelJob | None:
        """Choose a job by a number, young ones more often."""
        some = list(self.jobs.values())[-8:] if number % 3 else list(self.jobs.values())
        return some[number % len(some)] if some else None

    def running(self, number: int) -> ModelJob | None:
        """Choose a job that somebody holds."""
        some = [job for job in self.jobs.values() if job.lease is not None]
        return some[number % len(some)] if some else None

    @contextmanager
    def dying(self, process: JobQueue, *, dies: bool) -> Iterator[None]:
        """Let a process die after its commit, before Redis hears of it."""
        if not dies:
            yield
            return
        put, confirm = process.index.put, process._claims._confirm
        untold: set[str] = set()

        def dead_put(some: Any, **_: Any) -> None:
            untold.update(job.id for job in some)

        def dead_confirm(_queue: str, granted: Any, *_: Any) -> None:
            untold.update(job.id for job in granted)

        process.index.put = dead_put  # type: ignore[method-assign]
        process._claims._confirm = dead_confirm  # type: ignore[method-assign]
        try:
            yield
        finally:
            process.index.put = put  # type: ignore[method-assign]
            process._claims._confirm = confirm  # type: ignore[method-assign]
            # an index that the call itself has built anew came before
            self.notice_rebuilds()
            self.unindexed |= untold

    def placed(self, *job_ids: str, dies: bool = False) -> None:
        """Note that the index was told of jobs as they are."""
        if not dies and all(self.generation(self.jobs[one].queue) for one in job_ids):
            self.unindexed -= set(job_ids)

    def generation(self, queue: str) -> int | None:
        return self.processes[0].reservations.generation(queue)

    def notice_rebuilds(self) -> None:
        """Forget what was wrong with an index that has been built anew."""
        for queue in {job.queue for job in self.jobs.values()}:
            now = self.redis.get(f"{{db:{queue}}}:gen")
            if now is not None and now != self.generations.get(queue, now):
                there = {job.id for job in self.jobs.values() if job.queue == queue}
                self.unindexed -= there
                self.limbo -= there
            self.generations[queue] = now

    def refused(self, call: Callable[[], Any], *refusals: type[Exception]) -> None:
        with pytest.raises(refusals):
            call()

    # -- producers ---------------------------------------------------------------------------

    def new_id(self) -> str:
        """Make up an id."""
        return str(UUID(int=next(self.ids), version=4))

    def new(self, number: int, *, wait: int = 0, canvas: bool = False) -> NewJob:
        """Make up a job."""
        now = self.clock.now()
        return NewJob(
            task_id=self.new_id(),
            queue="q2" if number % 5 == 0 else "q1",
            type="ab"[number % 2],
            priority=number % 3,
            max_attempts=1 + number % 2,
            not_before=now + timedelta(seconds=wait) if wait else None,
            expires_at=now + timedelta(seconds=20) if number % 7 == 0 else None,
            envelope=ENVELOPE if canvas else None,
        )

    def add(self, new: NewJob, job: Job) -> None:
        assert job.seq > max((one.seq for one in self.jobs.values()), default=0)
        self.jobs[job.id] = ModelJob.of(job.id, job.seq, new)
        self.notice_rebuilds()

    @initialize(number=NUMBERS)
    def begin(self, number: int) -> None:
        self.create(number, number, 0, dies=False)

    @rule(number=NUMBERS, at=NUMBERS, wait=st.sampled_from([0, 0, 0, 5, 30]), dies=st.booleans())
    def create(self, number: int, at: int, wait: int, dies: bool) -> None:
        process, new = self.processes[at % 2], self.new(number, wait=wait)
        with self.dying(process, dies=dies):
            job = process.create(new)
        assert (job.status, job.attempt, job.fence) == (Status.QUEUED, 1, 0)
        self.add(new, job)

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4), at=NUMBERS, bad=st.booleans())
    def ingest(self, numbers: list[int], at: int, bad: bool) -> None:
        items: list[NewJob | Rejection] = []
        expected: list[str] = []
        for number in numbers:
            again = self.pick(number)
            if again is not None and number % 3 == 0:
                retries = number % 2 if again.status is not Status.FAILED else 1
                items.append(NewJob(task_id=again.id, queue="q1", type="z", retries=retries))
                known = "Job rejected" in again.titles
                expected.append("conflict" if retries or known else "duplicate")
                if expected[-1] == "conflict":
                    again.log("ingest_conflict")
            else:
                items.append(self.new(number, canvas=True))
                items.append(items[-1])
                expected += ["new", "duplicate"]
        if bad:
            items.append(Rejection(task_id=self.new_id(), queue="q1", type="x", reason="no"))
            expected.append("rejected")
        outcomes = self.processes[at % 2].ingest(items)
        self.notice_rebuilds()
        assert [one.outcome for one in outcomes] == expected
        for item, one in zip(items, outcomes, strict=True):
            if one.outcome == "new":
                assert isinstance(item, NewJob)
                assert one.job is not None
                self.add(item, one.job)
            elif one.outcome == "rejected":
                assert one.job is not None
                job = one.job
                self.jobs[job.id] = ModelJob.rejected(job.id, job.queue, job.seq)

    @rule(number=NUMBERS, at=NUMBERS, dies=st.booleans())
    def cancel(self, number: int, at: int, dies: bool) -> None:
        job, process = self.pick(number), self.processes[at % 2]
        if job is None:
            return
        with self.dying(process, dies=dies):
            if job.ended and job.status is not Status.CANCELLED:
                self.refused(lambda: process.cancel(job.id), errors.JobStateConflict)
                return
            told = process.cancel(job.id, reason="stop")
        if job.status is Status.QUEUED:
            job.cancel_at = self.clock.now()
            job.cancel()
        elif job.status is Status.RUNNING and job.cancel_at is None:
            job.ask_to_stop(self.clock.now())
        assert told.status is job.status
        assert told.cancel_requested_at == job.cancel_at
        self.placed(job.id, dies=dies)

    # -- claims ------------------------------------------------------------------------------

    @rule(
        worker=WORKERS,
        at=NUMBERS,
        key=st.sampled_from([None, None, "k1", "k2"]),
        most=st.sampled_from([1, 1, 2, 5]),
        lease_s=st.sampled_from([20, 60, 90]),
        dies=st.booleans(),
    )
    def claim(
        self, worker: str, at: int, key: str | None, most: int, lease_s: int, dies: bool
    ) -> None:
        process, now = self.processes[at % 2], self.clock.now()
        request = ClaimRequest(
            worker_id=worker, policy=POLICIES[worker], lease_seconds=lease_s, max_jobs=most,
            claim_key=key,
        )  # fmt: skip
        known = self.keys.get((worker, key)) if key else None
        if known and known[0][0].lease_expires_at > now:  # type: ignore[operator]
            self.claim_again(process, request, known)
            return
        expected = self.expected(worker, most)
        with self.dying(process, dies=dies):
            granted = process.claim(request)
        self.notice_rebuilds()
        # its own sweep may have ended a lease that it then gave anew
        self.absorb(dies=dies)
        for job in granted:
            self.granted(request, job)
        if expected is not None:
            assert [job.id for job in granted] == expected
        if key and granted:
            self.keys[worker, key] = (granted, (lease_s, most))
        self.placed(*(job.id for job in granted), dies=dies)

    def claim_again(self, process: JobQueue, request: ClaimRequest, known: Any) -> None:
        """Repeat a claim within its lease."""
        before, (lease_s, most) = known
        if (request.lease_seconds, request.max_jobs) != (lease_s, most):
            self.refused(lambda: process.claim(request), errors.InvalidPayload)
            return
        again = process.claim(request)
        names = [
            [(j.id, j.lease_id, j.fence, j.claimed_by) for j in some] for some in (before, again)
        ]
        assert names[0] == names[1]

    def expected(self, worker: str, most: int) -> list[str] | None:
        """Say what a claim must give, or None while the index may be behind."""
        now, policy = self.clock.now(), POLICIES[worker]
        queues = {job.queue for job in self.jobs.values()}
        lost = {queue for queue in queues if self.generation(queue) is None}
        behind = {one for one in self.unindexed if self.jobs[one].queue not in lost}
        if behind or any(job.expired(now) for job in self.jobs.values()):
            return None
        if policy.max_concurrency is not None:
            held = [j for j in self.jobs.values() if j.lease and j.lease.worker == worker]
            most = min(most, policy.max_concurrency - len(held))
        some = [
            job
            for job in self.jobs.values()
            if job.ready(now)
            and (policy.types is None or job.type in policy.types)
            and (policy.queues is None or job.queue in policy.queues)
            and (job.id not in self.limbo or job.queue in lost)
        ]
        some.sort(key=lambda job: job.rank)
        return [job.id for job in some if job.queue == some[0].queue][: max(0, most)]

    def granted(self, request: ClaimRequest, job: Job) -> None:
        """Note a grant, and that it was allowed."""
        now, model, policy = self.clock.now(), self.jobs[job.id], request.policy
        assert model.ready(now)
        assert policy.types is None or model.type in policy.types
        assert policy.queues is None or model.queue in policy.queues
        assert (job.attempt, job.fence) == (model.attempt, model.fence + 1)
        assert job.lease_id
        seconds = request.lease_seconds
        held_until = now + timedelta(seconds=min(30, seconds)) if request.held else None
        model.grant(
            Lease(
                request.worker_id, job.lease_id, job.fence, seconds, now, held_until,
                held_until or now + timedelta(seconds=seconds),
            )
        )  # fmt: skip
        self.limbo.discard(job.id)
        self.leases.append((job.id, request.worker_id, job.lease_id))

    @rule(at=NUMBERS, most=st.integers(1, 2))
    def claim_that_dies_before_its_grant(self, at: int, most: int) -> None:
        store = self.processes[at % 2].reservations
        if self.generation("q1") is not None:
            held = store.reserve(
                "q1", lambda _: True, lease_id=uuid4().hex, worker_id="w0", limit=most
            )
            self.limbo |= set(held.ids)

    # -- holders -----------------------------------------------------------------------------

    def holder(self, job: ModelJob, number: int) -> Holder:
        """Speak as who holds the job, now and then as an old client does."""
        assert job.lease is not None
        lease_id = None if number % 4 == 0 else job.lease.lease_id
        return Holder(worker_id=job.lease.worker, lease_id=lease_id)

    @rule(number=NUMBERS, at=NUMBERS)
    def heartbeat(self, number: int, at: int) -> None:
        job = self.running(number)
        if job is None or job.lease is None:
            return
        beat = self.processes[at % 2].heartbeat(
            job.id, self.holder(job, number), lease_seconds=job.lease.seconds
        )
        job.lease.beat(self.clock.now())
        assert (beat.job.id, beat.job.lease_id) == (job.id, job.lease.lease_id)
        if job.id not in self.unindexed:
            assert beat.job.cancel_requested_at == job.cancel_at

    @rule(number=NUMBERS, at=NUMBERS)
    def append(self, number: int, at: int) -> None:
        job = self.running(number)
        if job is None or job.lease is None:
            return
        process, holder = self.processes[at % 2], self.holder(job, number)
        new = [NewEvent(message="m", worker_seq=number), NewEvent(message="m", worker_seq=number)]
        made = process.append_events(job.id, holder, new)
        assert process.append_events(job.id, holder, new) == made
        if made[0].seq == len(job.titles) + 1:
            job.log("m")
        job.lease.take_up()

    @rule(number=NUMBERS, at=NUMBERS, dies=st.booleans(), base=st.booleans())
    def complete(self, number: int, at: int, dies: bool, base: bool) -> None:
        job = self.running(number)
        if job is not None:
            holder = self.holder(job, 0 if base else 1)
            self.end(job, at, dies, holder, lambda q: q.complete(job.id, holder, result=number))
            job.complete()

    @rule(
        number=NUMBERS,
        at=NUMBERS,
        dies=st.booleans(),
        retryable=st.booleans(),
        after_s=st.sampled_from([None, 5]),
    )
    def fail(self, number: int, at: int, dies: bool, retryable: bool, after_s: int | None) -> None:
        job = self.running(number)
        if job is None:
            return
        holder, now, attempt = self.holder(job, 1), self.clock.now(), job.attempt
        told = self.end(
            job, at, dies, holder,
            lambda q: q.fail(
                job.id, holder, error_message="e", retryable=retryable, retry_after_s=after_s
            ),
        )  # fmt: skip
        job.fail(retryable=retryable)
        if job.status is Status.QUEUED:
            assert told.next_attempt_at is not None
            delay = (told.next_attempt_at - now).total_seconds()
            middle = 15 * 2 ** (attempt - 1)
            assert delay == after_s if after_s else 0.75 * middle <= delay <= 1.25 * middle
            job.not_before = told.next_attempt_at

    @rule(number=NUMBERS, at=NUMBERS, dies=st.booleans())
    def release(self, number: int, at: int, dies: bool) -> None:
        job = self.running(number)
        if job is not None:
            holder = self.holder(job, 1)
            self.end(job, at, dies, holder, lambda q: q.release(job.id, holder))
            job.release("released")

    @rule(number=NUMBERS, at=NUMBERS, dies=st.booleans())
    def acknowledge(self, number: int, at: int, dies: bool) -> None:
        job = self.running(number)
        if job is None:
            return
        holder = self.holder(job, 1)
        if job.cancel_at is None:
            process = self.processes[at % 2]
            self.refused(lambda: process.cancel_ack(job.id, holder), errors.JobStateConflict)
            return
        self.end(job, at, dies, holder, lambda q: q.cancel_ack(job.id, holder))
        job.cancel()

    def end(
        self, job: ModelJob, at: int, dies: bool, holder: Holder, call: Callable[[JobQueue], Job]
    ) -> Job:
        """End a lease, twice."""
        first, second = self.processes[at % 2], self.processes[(at + 1) % 2]
        with self.dying(first, dies=dies):
            told = call(first)
        if holder.lease_id is not None:
            assert call(second) == told
        else:
            self.refused(lambda: call(second), *REFUSALS)
        self.placed(job.id, dies=dies)
        return told

    @precondition(lambda self: self.leases)
    @rule(number=NUMBERS, at=NUMBERS, who=st.sampled_from(["late", "thief", "guess", "base"]))
    def stranger(self, number: int, at: int, who: str) -> None:
        """Speak for a lease that is over, is another's, or never was."""
        process = self.processes[at % 2]
        job_id, worker, lease_id = self.leases[number % len(self.leases)]
        job = self.jobs[job_id]
        holder = {
            "late": Holder(worker_id=worker, lease_id=lease_id),
            "thief": Holder(worker_id="w9", lease_id=job.lease.lease_id if job.lease else lease_id),
            "guess": Holder(worker_id=worker, lease_id="0" * 32),
            "base": Holder(worker_id="w9"),
        }[who]
        if job.lease and (holder.worker_id, holder.lease_id) == (
            job.lease.worker, job.lease.lease_id,
        ):  # fmt: skip
            return
        refusal: type[Exception] = errors.OwnershipMismatch
        if job.lease is None:
            refusal = errors.JobStateConflict
        elif job.lease.worker == holder.worker_id:
            refusal = errors.LeaseLost
        event = [NewEvent(message="not mine")]
        # words that no rule says, so that none is the repeat of a call that was answered
        self.refused(lambda: process.complete(job_id, holder, result="stale"), refusal)
        self.refused(lambda: process.fail(job_id, holder, error_message="stale"), refusal)
        self.refused(lambda: process.append_events(job_id, holder, event), refusal)
        if job.id not in self.unindexed:
            self.refused(lambda: process.heartbeat(job_id, holder, lease_seconds=60), refusal)

    # -- time and faults ---------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3, 11, 16, 31, 61]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def expire(self) -> None:
        rebuilds = any(self.generation(job.queue) is None for job in self.jobs.values())
        self.upkeep.expire()
        self.notice_rebuilds()
        self.absorb()
        now = self.clock.now()
        assert not [job.id for job in self.jobs.values() if job.expired(now)]
        for job in self.jobs.values():
            if job.cancel_at and job.lease:
                assert job.cancel_at + timedelta(seconds=60) > now
        if rebuilds:
            return
        for scores in self.indexes().values():
            for index, score in scores.items():
                if index in {Index.GRANTING, Index.RESERVED}:
                    assert score > to_ms(now), "what is overdue was ended, or has a new deadline"

    @rule()
    def promote(self) -> None:
        self.upkeep.promote()
        self.notice_rebuilds()

    @rule()
    def reconcile(self) -> None:
        self.upkeep.reconcile()
        self.notice_rebuilds()
        self.unindexed.clear()

    @rule()
    def flush(self) -> None:
        self.redis.flushall()
        for job in self.jobs.values():
            if job.lease is not None:
                job.lease.doubtful = True

    @rule(at=NUMBERS)
    def restart(self, at: int) -> None:
        self.processes[at % 2].reservations.close()
        self.processes[at % 2] = self.process()
        self.upkeep = Upkeep(self.processes[0])

    def absorb(self, *, dies: bool = False) -> None:
        """Take over what a sweep has ended, if it might."""
        now = self.clock.now()
        for row in self.rows(JobRow, "id status reason lease_id next_attempt_at"):
            job = self.jobs[row.id]
            if job.expired(now) and row.status is Status.CANCELLED:
                assert row.reason == "expired"
                job.cancel()
            if job.lease is None or row.lease_id == job.lease.lease_id:
                continue
            [outcome] = [
                one.outcome
                for one in self.rows(AttemptRow, "job_id fence outcome")
                if (one.job_id, one.fence) == (job.id, job.lease.fence)
            ]
            assert outcome in job.may_end_by_itself(now)
            job.end_by_itself(outcome)
            if outcome == "lost" and job.status is Status.QUEUED:
                assert LOST_S[0] <= (row.next_attempt_at - now).total_seconds() <= LOST_S[1]
                job.not_before = row.next_attempt_at
            self.placed(job.id, dies=dies)

    # -- what must hold at any instant -------------------------------------------------------

    def rows(self, table: type[Base], columns: str) -> list[Any]:
        """Read some columns of a whole table, in the order of its key."""
        of = table.__table__.c
        order = sorted(column.name for column in sa.inspect(table).primary_key)
        query = sa.select(*(of[name] for name in columns.split()))
        with self.ledger.read() as conn:
            return list(conn.execute(query.order_by(*(of[name] for name in order))))

    def indexes(self) -> dict[str, dict[Index, float]]:
        """Read where each job lies, with its score, but for queues without an index."""
        found: dict[str, dict[Index, float]] = {}
        for queue in sorted({job.queue for job in self.jobs.values()}):
            scores: dict[str, dict[Index, float]] = defaultdict(dict)
            entries = self.redis.eval(ENTRIES, 0, f"{{db:{queue}}}:")
            if entries is None:
                continue
            for name, member, score in zip(*[iter(entries)] * 3, strict=True):
                lane = name.startswith("lane:")
                index, job_id = (Index.READY, member[17:]) if lane else (Index(name), member)
                assert index not in scores[job_id], "in one lane"
                scores[job_id][index] = float(score)
            there = [job.id for job in self.jobs.values() if job.queue == queue]
            assert set(scores) <= set(there), "the index knows nothing the ledger does not"
            found |= {job_id: scores.get(job_id, {}) for job_id in there}
        return found

    @invariant()
    def the_ledger_is_the_model(self) -> None:
        columns = (
            "id status attempt max_attempts fence run seq lease_id claimed_by next_attempt_at "
            "cancel_requested_at finished_at event_seq"
        )
        rows = {row.id: row for row in self.rows(JobRow, columns)}
        assert rows.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            row = rows[job_id]
            assert (row.status, row.attempt, row.fence, row.run, row.seq) == (
                job.status, job.attempt, job.fence, 1, job.seq,
            )  # fmt: skip
            assert row.attempt <= row.max_attempts
            lease = (job.lease.worker, job.lease.lease_id) if job.lease else (None, None)
            assert row.lease_id == lease[1]
            assert row.claimed_by == lease[0] or job.ended
            assert row.next_attempt_at == job.not_before
            assert row.cancel_requested_at == job.cancel_at
            assert (row.finished_at is not None) is job.ended
            assert row.event_seq == len(job.titles)

    @invariant()
    def the_log_is_the_sum_of_what_happened(self) -> None:
        logs: dict[str, list[Any]] = defaultdict(list)
        for row in self.rows(EventRow, "job_id seq message"):
            logs[row.job_id].append(row)
        for job_id, job in self.jobs.items():
            assert [row.seq for row in logs[job_id]] == list(range(1, len(job.titles) + 1))
            assert [row.message for row in logs[job_id]] == job.titles
            ends = {"Job completed", "Job failed", "Job cancelled", "Job rejected"}
            count = sum(title in ends for title in job.titles)
            # of a job that has ended, its log may still tell that its id came again
            own = [title for title in job.titles if title != "ingest_conflict"]
            count += job.status is Status.DEAD_LETTER and own[-1] == "Lease expired"
            assert count == job.ended, "one end a run"

    @invariant()
    def each_lease_has_its_row_and_its_end(self) -> None:
        leases: dict[str, list[Any]] = defaultdict(list)
        for row in self.rows(AttemptRow, "job_id fence outcome lease_id ended_at"):
            leases[row.job_id].append(row)
        for job_id, job in self.jobs.items():
            rows = leases[job_id]
            assert [row.fence for row in rows] == list(range(1, job.fence + 1))
            assert [row.outcome for row in rows] == job.outcomes
            assert len({row.lease_id for row in rows}) == len(rows)
            assert [row.ended_at is None for row in rows] == [one is None for one in job.outcomes]

    @invariant()
    def celery_is_told_all_of_it_in_order(self) -> None:
        told: dict[str, list[str]] = defaultdict(list)
        for row in self.rows(OutboxRow, "job_id kind data"):
            what = row.data.get("type") or row.data.get("state") or ""
            told[row.job_id].append(f"{row.kind}:{what}")
        for job_id, job in self.jobs.items():
            assert told[job_id] == job.effects

    @invariant()
    def the_heads_are_those_of_the_lanes(self) -> None:
        for queue in sorted({job.queue for job in self.jobs.values()}):
            wrong = self.redis.eval(HEADS, 0, f"{{db:{queue}}}:")
            assert wrong is None, wrong

    @invariant()
    def each_live_job_lies_in_one_index(self) -> None:
        now = self.clock.now()
        for job_id, scores in self.indexes().items():
            job, where = self.jobs[job_id], set(scores)
            assert len(where) <= 1
            if job_id in self.unindexed:
                continue
            if job.status is Status.RUNNING:
                assert where <= {Index.GRANTING, Index.RESERVED}
                assert len(where) == 1
                assert job.lease is not None
                latest = now + timedelta(seconds=job.lease.seconds)
                assert max(scores.values()) <= to_ms(latest) + 1
            elif job.ended:
                assert not where
            elif job_id in self.limbo and where == {Index.GRANTING}:
                continue
            else:
                self.limbo.discard(job_id)
                waits = job.not_before is not None and job.not_before > now
                assert where == {Index.SCHEDULED} if waits else where < {
                    Index.SCHEDULED, Index.READY,
                }  # fmt: skip
                assert len(where) == 1


def settings_of(examples: int) -> settings:
    """Say how long and how hard to try."""
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=False,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_calls_in_any_order_keep_the_contract(ledger: Ledger, valkey_url: str):
    seed = CI_SEED if in_ci() else random.randrange(2**32)
    print(f"seed {seed}")
    machine = type("Machine", (QueueMachine,), {"ledger": ledger, "redis_url": valkey_url})
    hypothesis.seed(seed)(machine)
    # each commit of PostgreSQL takes its time
    examples = 100 if ledger.dialect == "sqlite" else 25
    run_state_machine_as_test(machine, settings=settings_of(examples))
