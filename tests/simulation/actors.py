"""Who acts in a run: workers, strangers, operators, sweeps, the bridge, time and fate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Completion, Holder, Job, NewEvent
from broker.redrive_shapes import Redrive, RedriveFilter
from broker.states import Status
from broker.upkeep import Upkeep
from tests.simulation.scheduler import Killed
from tests.simulation.world import World

#: a client asks again so often when it gets no answer
PATIENCE: Final = 4
#: a worker goes home after so many jobs, or so many claims
JOBS: Final = 5
CLAIMS: Final = 14
POLICIES: Final = {
    "w0": Policy(), "w1": Policy(max_concurrency=2), "w2": Policy(types=("a",)), "w3": Policy(),
}  # fmt: skip


class Client:
    """Whoever calls the queue through a process that may die under it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.edge: JobQueue = world.process()

    def call(self, ask: Callable[[JobQueue], Any]) -> tuple[str, Any]:
        """Call until there is an answer, within reason; says ok, refused or silent."""
        for _ in range(PATIENCE):
            outcome, answer = self.world.attempt(lambda: ask(self.edge))
            if outcome == "killed":
                self.edge = self.world.process()
            elif outcome != "unavailable":
                return outcome, answer
        return "silent", None


class Worker(Client):
    """Claims, heartbeats, ends; now and then goes away without a word."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world)
        self.name = name
        self.policy = POLICIES[name]
        world.working += 1

    def work(self) -> None:
        """Take up some jobs, one claim after the other."""
        left = JOBS
        for _ in range(CLAIMS):
            granted = self.claim()
            left -= len(granted)
            for job in granted:
                self.spend(job)
            if left <= 0:
                break
            self.world.schedule.pause()
        self.world.working -= 1

    def claim(self) -> list[Job]:
        """Claim under a key of its own, or as an old client does."""
        key = f"k{self.world.number()}" if self.random.randrange(3) else None
        request = ClaimRequest(
            worker_id=self.name, policy=self.policy, lease_seconds=self.random.choice([10, 30, 60]),
            max_jobs=self.random.choice([1, 1, 2, 4]), claim_key=key,
        )  # fmt: skip
        outcome, granted = self.call(lambda queue: queue.claim(request))
        if outcome != "ok":
            return []
        for job in granted:
            self.world.oracle.granted(
                self.name, job.id, job.lease_id, job.fence, most=self.policy.max_concurrency
            )
            self.world.leases.append((job.id, self.name, job.lease_id))
        return list(granted)

    def spend(self, job: Job) -> None:
        """Work on a job: heartbeats, events, an end; or none of it."""
        holder = Holder(worker_id=self.name, lease_id=job.lease_id)
        for _ in range(self.random.randrange(3)):
            self.call(lambda queue: queue.heartbeat(job.id, holder, lease_seconds=30))
        if self.random.randrange(4) == 0:
            new = [NewEvent(message="m", worker_seq=1)]
            self.call(lambda queue: queue.append_events(job.id, holder, new))
        if self.random.randrange(6):
            self.end(job, holder)

    def end(self, job: Job, holder: Holder) -> None:
        """End a lease by one of the ways there are; each may be said again, however late."""
        op = self.random.choice(["complete", "complete", "batch", "fail", "retry", "release"])
        op = "ack" if job.cancel_requested_at is not None else op
        say = ends(job.id, holder, f"{holder.lease_id}")[op]
        for _ in range(1 + (self.random.randrange(3) == 0)):
            judged(self, op, job.id, holder, said=f"{holder.lease_id}", ask=say)


def ends(job: str, holder: Holder, said: str) -> dict[str, Callable[[JobQueue], Any]]:
    """Return the calls that end a lease."""

    def complete_many(queue: JobQueue) -> Any:
        one = Completion(job_id=job, lease_id=holder.lease_id, result=said)
        [answer] = queue.complete_many(holder.worker_id, [one])
        if isinstance(answer, Exception):
            raise answer
        return answer

    return {
        "complete": lambda queue: queue.complete(job, holder, result=said),
        "batch": complete_many,
        "fail": lambda queue: queue.fail(job, holder, error_message=said),
        "retry": lambda queue: queue.fail(job, holder, error_message=said, retryable=True),
        "release": lambda queue: queue.release(job, holder),
        "ack": lambda queue: queue.cancel_ack(job, holder),
    }


def judged(
    client: Client,
    op: str,
    job: str,
    holder: Holder,
    *,
    said: str,
    ask: Callable[[JobQueue], Any],
) -> None:
    """End a lease and have the answer judged at once."""
    oracle = client.world.oracle
    lease = holder.lease_id or ""
    before: list[str | None] = []

    def look_and_ask(queue: JobQueue) -> Any:
        before.append(oracle.outcome(job, lease))
        return ask(queue)

    outcome, _ = client.call(look_and_ask)
    op = {"retry": "fail", "batch": "complete"}.get(op, op)
    if outcome == "ok":
        oracle.answered(op, job, lease, before=before[-1], said=said)
    elif outcome == "refused" and oracle.outcome(job, lease) is not None:
        # it may have ended between the look and the call
        oracle.refused(op, job, before=oracle.outcome(job, lease))
    elif outcome == "refused" and op != "ack":
        oracle.refused(op, job, before=None)


class Stranger(Client):
    """Speaks for leases that are over, or are another's."""

    def work(self) -> None:
        """Say what is not its to say."""
        while self.world.working:
            self.world.schedule.pause()
            if not self.world.leases or self.random.randrange(3):
                continue
            job, worker, lease = self.random.choice(self.world.leases)
            if self.world.oracle.outcome(job, lease) is None:
                continue
            op = self.random.choice(["complete", "complete", "fail", "batch"])
            holder = Holder(worker_id=worker, lease_id=lease)
            say = ends(job, holder, "stale")[op]
            judged(self, op, job, holder, said="stale", ask=say)


class Operator(Client):
    """Creates, cancels and brings back."""

    def create(self) -> None:
        """Create jobs over HTTP and send others through the broker."""
        for _ in range(6):
            self.world.publish()
            self.world.publish()
            for _ in range(12):
                self.world.schedule.pause()
            new = self.world.new()
            new = replace(new, created_by="operator", idempotency_key=new.task_id)
            outcome, _ = self.call(lambda queue: queue.create(new))  # noqa: B023  called at once
            if outcome == "ok":
                self.world.oracle.created.append(new.task_id)
            self.world.schedule.pause()

    def meddle(self) -> None:
        """Cancel some, redrive others."""
        while self.world.working:
            for _ in range(20):
                self.world.schedule.pause()
            ids = self.world.oracle.ids()
            if not ids:
                continue
            job = self.random.choice(ids)
            if self.random.randrange(2):
                outcome, told = self.call(lambda queue: queue.cancel(job))  # noqa: B023
                if outcome == "ok" and told.status is Status.CANCELLED:
                    self.world.oracle.cancels.add(job)
                continue
            wanted = RedriveFilter(statuses=(Status.FAILED, Status.DEAD_LETTER), limit=3)
            asked = Redrive(filter=wanted, max_rate=self.random.choice([None, 1.0]))
            self.call(lambda queue: queue.redrive(asked))  # noqa: B023


def sweeps(world: World) -> None:
    """Do what beat and the bridges do all the time; a sweep that dies begins again."""
    client = Client(world)
    while world.working:
        upkeep = Upkeep(client.edge)
        sweep = world.random.choice([upkeep.expire, upkeep.promote, upkeep.reconcile])
        outcome, _ = world.attempt(sweep)
        if outcome == "killed":
            client.edge = world.process()
        world.oracle.look()
        for _ in range(10):
            world.schedule.pause()


def bridge(world: World) -> None:
    """Ingest, and tell Celery; a bridge that dies is started anew, with an inbox of its own."""
    drain, relay = world.drain(), world.relay()
    while world.working:
        drain._rescued_at = float("-inf")
        try:
            world.bear(drain.step)
            world.bear(relay.step)
        except Killed:
            drain, relay = world.drain(), world.relay()
        world.schedule.pause()


def time_passes(world: World) -> None:
    """Move the clock, often a little, now and then past every deadline."""
    while world.working:
        for _ in range(8):
            world.schedule.pause()
        world.clock.advance(world.random.choice(world.mix.jumps_s))


def fate(world: World) -> None:
    """Lose the whole Redis of the reservations."""
    for _ in range(world.mix.flushes):
        for _ in range(world.random.randrange(5, 40)):
            world.schedule.pause()
        world.admin.flushall()
        world.oracle.figures["flushes"] += 1
