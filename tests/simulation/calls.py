"""Every call that writes, each with a world made ready for it; whoever adds one adds it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

from broker.bridge.fetch import Drain
from broker.bridge.relay import Relay
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Completion, Holder, Job, NewEvent, NewJob
from broker.redrive_shapes import Redrive
from broker.upkeep import Upkeep
from tests.simulation.world import QUEUE, World

#: a redrive of nothing, an expiry of nothing: the repeat of what has had its effect
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Call:
    """A call: what must be there before, who makes it, and how."""

    prepare: Callable[[World], Any]
    act: Callable[[Any, Any], Any]
    who: Callable[[World], Any] = World.process
    #: after how long nothing of a dead process stands in the way: a hold, a builder's silence
    lapse_s: float = 10.5


def new(world: World, **values: Any) -> NewJob:
    """Make up a job like all others."""
    number = world.number()
    common: dict[str, Any] = {
        "task_id": f"00000000-0000-4000-8000-{number:012x}", "queue": QUEUE, "type": "a",
        "max_attempts": 2,
    }  # fmt: skip
    return NewJob(**common | values)


def created(world: World, **values: Any) -> Job:
    """Make a job that waits."""
    job = world.process().create(new(world, **values))
    world.oracle.created.append(job.id)
    return job


def claim(queue: JobQueue, number: int = 1, key: str = "first") -> list[Job]:
    """Claim under a key, so that the claim can be repeated."""
    request = ClaimRequest(
        worker_id="w", policy=Policy(), lease_seconds=60, max_jobs=number, claim_key=key
    )
    return queue.claim(request)


def held(world: World, number: int = 1, **values: Any) -> list[tuple[str, Holder]]:
    """Make jobs that a worker has taken up."""
    for _ in range(number):
        created(world, **values)
    queue = world.process()
    found = []
    for job in claim(queue, number):
        holder = Holder(worker_id="w", lease_id=job.lease_id)
        queue.heartbeat(job.id, holder, lease_seconds=60)
        found.append((job.id, holder))
    return found


def one_held(world: World) -> tuple[str, Holder]:
    """Make one."""
    return held(world)[0]


def last_held(world: World) -> tuple[str, Holder]:
    """Make one on its last attempt."""
    return held(world, max_attempts=1)[0]


def cancelled(world: World) -> tuple[str, Holder]:
    """Make one that its worker shall stop."""
    job, holder = held(world)[0]
    world.process().cancel(job)
    return job, holder


def later(prepare: Callable[[World], Any], seconds: float) -> Callable[[World], Any]:
    """Make ready, and let time pass."""

    def both(world: World) -> Any:
        ready = prepare(world)
        world.clock.advance(seconds)
        return ready

    return both


def flushed(prepare: Callable[[World], Any]) -> Callable[[World], Any]:
    """Make ready, and lose the whole Redis."""

    def both(world: World) -> Any:
        ready = prepare(world)
        world.admin.flushall()
        return ready

    return both


def dead(world: World) -> tuple[str, ...]:
    """Make jobs whose attempts are used up."""
    queue = world.process()
    ids = []
    for job, holder in held(world, 3, max_attempts=1):
        queue.fail(job, holder, error_message="e", retryable=True)
        ids.append(job)
    return tuple(ids)


def waiting(world: World) -> None:
    """Make a job that becomes ready soon."""
    created(world, not_before=world.clock.now() + timedelta(seconds=5))


def unseen(world: World) -> None:
    """Make a job that no index has heard of, and one that runs there though it has ended."""
    queue = world.process()
    job, holder = held(world)[0]
    created(world, priority=-1)
    queue.index.put = lambda *_, **__: None  # type: ignore[method-assign]
    queue.complete(job, holder, result="x")
    world.oracle.created.append(queue.create(new(world)).id)


def published(world: World) -> World:
    """Put messages into the broker."""
    created(world)
    for _ in range(3):
        world.publish()
    return world


def told(world: World) -> World:
    """Leave a few rows in the outbox."""
    job, holder = held(world)[0]
    world.process().complete(job, holder, result="x")
    return world


def complete_all(queue: JobQueue, some: list[tuple[str, Holder]]) -> Any:
    """Complete several in one call."""
    ended = [Completion(job_id=job, lease_id=by.lease_id, result="x") for job, by in some]
    answers = queue.complete_many("w", ended)
    assert all(isinstance(answer, Job) for answer in answers)
    return answers


def sweep(name: str) -> Callable[[JobQueue, Any], Any]:
    """Return a sweep as a call."""

    def act(queue: JobQueue, _ready: Any) -> str:
        getattr(Upkeep(queue), name)()
        return DONE

    return act


def ingest(drain: Drain, world: World) -> bool:
    """Look into the inbox, then fetch; says whether no message waits any more."""
    for _ in range(2):
        drain._rescued_at = float("-inf")
        drain.step()
    return not world.messages.keys("drawbridge.inbox:*") and not world.messages.llen(QUEUE)


def relay(one: Relay, world: World) -> bool:
    """Relay a batch; says whether nothing waits to be told."""
    one.step()
    return world.oracle.at_rest()


def events(queue: JobQueue, ready: tuple[str, Holder]) -> Any:
    """Append a batch, numbered so that it may come twice."""
    batch = [NewEvent(message=f"m{number}", worker_seq=number) for number in range(3)]
    return queue.append_events(*ready, batch)


CALLS: Final[Mapping[str, Call]] = MappingProxyType(
    {
        "create": Call(
            lambda world: new(world, created_by="op", idempotency_key="k"),
            lambda queue, one: queue.create(one),
        ),
        "ingest": Call(published, ingest, World.drain),
        "claim": Call(created, lambda queue, _: claim(queue)),
        "claim a batch": Call(
            lambda world: [created(world) for _ in range(3)], lambda queue, _: claim(queue, 3)
        ),
        "claim after a flush": Call(flushed(created), lambda queue, _: claim(queue)),
        "heartbeat": Call(one_held, lambda q, r: q.heartbeat(*r, lease_seconds=60)),
        "heartbeat after a flush": Call(
            flushed(one_held), lambda q, r: q.heartbeat(*r, lease_seconds=60)
        ),
        "append events": Call(one_held, events),
        "complete": Call(one_held, lambda q, r: q.complete(*r, result="x")),
        "complete a batch": Call(lambda world: held(world, 3), complete_all),
        "fail": Call(one_held, lambda q, r: q.fail(*r, error_message="e")),
        "retry": Call(one_held, lambda q, r: q.fail(*r, error_message="e", retryable=True)),
        "exhaust": Call(last_held, lambda q, r: q.fail(*r, error_message="e", retryable=True)),
        "release": Call(one_held, lambda q, r: q.release(*r)),
        "cancel what waits": Call(created, lambda q, job: q.cancel(job.id)),
        "cancel what runs": Call(one_held, lambda q, r: q.cancel(r[0])),
        "acknowledge a cancel": Call(cancelled, lambda q, r: q.cancel_ack(*r)),
        "expire a lease": Call(later(one_held, 61), sweep("expire")),
        "expire a last lease": Call(later(last_held, 61), sweep("expire")),
        "expire a cancelled one": Call(later(cancelled, 61), sweep("expire")),
        "redrive": Call(dead, lambda q, ids: q.redrive(Redrive(ids=ids))),
        "promote": Call(later(waiting, 6), sweep("promote")),
        "reconcile": Call(unseen, sweep("reconcile")),
        "rebuild": Call(flushed(lambda world: (held(world), created(world))), sweep("reconcile")),
        # the rows a dead relay has taken are its own for a minute
        "relay": Call(told, relay, World.relay, lapse_s=60.5),
    }
)
