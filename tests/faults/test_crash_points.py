"""Processes that die by SIGKILL between two steps, and what the others make of it.

Each order of writes of broker/README.md is cut at every step. Then another process sweeps and
reconciles, and all must be as if the call had been made whole, or not at all.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa

from broker import errors
from broker.ledger.engine import Ledger
from broker.ledger.outbox import outbox
from broker.queue import JobQueue
from broker.records import Holder, Job, NewJob
from broker.reservations.keys import QueueKeys
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import LIVE, Index, Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.test_claims import index_of
from tests.contract.test_queue import claim, holder

pytestmark = pytest.mark.faults

ROOT: Final = Path(__file__).parents[2]

Dies = Callable[..., None]


class World:
    """The queue as the survivors see it."""

    def __init__(self, ledger_url: str, redis_url: str) -> None:
        self.clock = SetClock()
        self.ledger = Ledger(ledger_url)
        client = Reservations.connect(redis_url).client
        store = Reservations(client, now_ms=lambda: int(self.clock.now().timestamp() * 1000))
        self.queue = JobQueue(self.ledger, store, clock=self.clock, settings=QueueSettings())
        self.upkeep = Upkeep(self.queue)

    def close(self) -> None:
        """Close what is open."""
        self.queue.reservations.close()
        self.ledger.close()

    def create(self, **values: Any) -> Job:
        """Make a job."""
        new = {"task_id": str(uuid4()), "queue": "remote", "type": "echo", "max_attempts": 2}
        return self.queue.create(NewJob(**new | values))

    def grant(self) -> Job:
        """Make a job that a worker holds and has taken up."""
        job = self.create()
        [granted] = claim(self.queue, "w")
        assert granted.id == job.id
        return granted

    def heal(self, *, seconds: float = 0) -> None:
        """Let time pass, and do what beat and the bridges do all the time."""
        self.clock.advance(seconds)
        self.upkeep.expire()
        self.upkeep.promote()
        self.upkeep.reconcile()

    def check(self, *jobs: Job) -> None:
        """Look whether the books agree: rows, log, leases, effects, index."""
        for one in jobs:
            job = self.queue.catalog.get(one.id)
            log = self.queue.catalog.events(job.id)
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            ends = [e for e in log if e.message in {"Job completed", "Job failed", "Job cancelled"}]
            assert len(ends) == (job.status not in LIVE)
            leases = self.queue.catalog.attempts(job.id)
            assert [lease.fence for lease in leases] == list(range(1, job.fence + 1))
            still = [lease for lease in leases if lease.outcome is None]
            assert len(still) == (job.status is Status.RUNNING)
            stores = [row for row in self.told(job) if row.startswith("store")]
            assert len(stores) == (job.status not in LIVE)
            where = index_of(self.queue.reservations, job)
            assert len(where) == (job.status in LIVE)
            if job.status is Status.RUNNING:
                assert where[0] in {Index.GRANTING, Index.RESERVED}

    def told(self, job: Job) -> list[str]:
        """List what Celery will hear of a job."""
        with self.ledger.read() as conn:
            query = sa.select(outbox).where(outbox.c.job_id == job.id).order_by(outbox.c.seq)
            rows = conn.execute(query).all()
        return [f"{row.kind}:{row.data.get('state') or row.data.get('type')}" for row in rows]

    def finish(self, job: Job) -> None:
        """Run a job that waits, to its good end."""
        [granted] = claim(self.queue, "v")
        assert granted.id == job.id
        assert self.queue.complete(job.id, holder(granted)).status is Status.SUCCEEDED
        self.check(job)


@pytest.fixture
def world(ledger_url: str, valkey_url: str) -> Iterator[World]:
    """Give empty stores, on each of the databases."""
    made = World(ledger_url, valkey_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def forker() -> Iterator[Popen[str]]:
    """Give the process whose children die."""
    child = Popen(
        [sys.executable, "-m", "tests.faults.crash_child"],
        stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    yield child
    child.kill()
    child.communicate()


@pytest.fixture
def dies(forker: Popen[str], world: World, ledger_url: str, valkey_url: str) -> Dies:
    """Let another process do something and die on the way; it must get as far as that."""
    begun, started = world.clock.now(), time.monotonic()
    passed_s = 0.0

    def run(action: str, point: str, **told: Any) -> None:
        nonlocal passed_s
        moved_s = (world.clock.now() - begun).total_seconds() - passed_s
        order = {
            "action": action, "point": f"broker.{point}", "told": told, "redis": valkey_url,
            "database": ledger_url, "later_ms": moved_s * 1000,
        }  # fmt: skip
        assert forker.stdin is not None
        assert forker.stdout is not None
        forker.stdin.write(json.dumps(order) + "\n")
        forker.stdin.flush()
        said = forker.stdout.readline().strip()
        assert said == str(int(signal.SIGKILL)), f"{point} was not reached"
        # its clock went on while ours stood still: what it held must not outlive our patience
        world.clock.advance(time.monotonic() - started - passed_s)
        passed_s = time.monotonic() - started

    return run


# -- claim ------------------------------------------------------------------------------------

BEFORE_GRANT: Final = [
    "reservations.store:Reservations.reserve before",
    "reservations.store:Reservations.reserve after",
    "ledger.workers:lock_worker after",
    "ledger.grants:open_attempts after",
    "ledger.events:insert after",
    "ledger.outbox:insert after",
    "ledger.grants:grant after",
]
AFTER_GRANT: Final = [
    "claims:Claims._confirm before",
    "reservations.store:Reservations.confirm after",
    "claims:Claims._grant after",
]


@pytest.mark.parametrize("point", BEFORE_GRANT)
def test_a_claim_that_dies_before_its_commit_costs_no_attempt(world: World, dies: Dies, point: str):
    job = world.create(max_attempts=1)
    dies("claim", point)
    world.heal(seconds=11)
    assert world.queue.catalog.attempts(job.id) == []
    world.check(job)
    world.finish(job)


@pytest.mark.parametrize("point", AFTER_GRANT)
@pytest.mark.parametrize("flushed", [False, True])
def test_a_claim_that_dies_after_its_commit_is_answered_to_its_repeat(
    world: World, dies: Dies, point: str, flushed: bool
):
    job = world.create(max_attempts=1)
    dies("claim", point)
    if flushed:
        world.queue.reservations.client.flushall()
    [granted] = claim(world.queue, "w", claim_key="key")
    [attempt] = world.queue.catalog.attempts(job.id)
    assert (granted.id, granted.lease_id) == (job.id, attempt.lease_id)
    world.queue.heartbeat(job.id, holder(granted), lease_seconds=60)
    world.heal(seconds=50)
    world.check(job)
    assert world.queue.complete(job.id, holder(granted)).status is Status.SUCCEEDED
    world.check(job)


@pytest.mark.parametrize("point", AFTER_GRANT)
def test_a_grant_that_nobody_heard_of_goes_back_at_no_cost(world: World, dies: Dies, point: str):
    job = world.create(max_attempts=1)
    dies("claim", point)
    world.heal(seconds=11)
    world.check(job)
    world.heal(seconds=21)
    assert [lease.outcome for lease in world.queue.catalog.attempts(job.id)] == ["undelivered"]
    world.check(job)
    world.finish(job)


# -- the ends of a lease ----------------------------------------------------------------------

WITHIN: Final = [
    "ledger.transitions:end_attempt before",
    "ledger.events:insert before",
    "ledger.outbox:insert before",
    "ledger.outbox:insert after",
]
AFTER: Final = ["indexing:Indexer.put before", "indexing:Indexer._put after"]
#: call, what it makes of the job, and how it is called again
ENDS: Final[dict[str, tuple[Status, Callable[[JobQueue, str, Holder], Job]]]] = {
    "complete": (Status.SUCCEEDED, lambda q, j, h: q.complete(j, h, result={"x": 1})),
    "retry": (Status.QUEUED, lambda q, j, h: q.fail(j, h, error_message="e", retryable=True)),
    "fail": (Status.FAILED, lambda q, j, h: q.fail(j, h, error_message="e")),
    "release": (Status.QUEUED, lambda q, j, h: q.release(j, h)),
    "acknowledge": (Status.CANCELLED, lambda q, j, h: q.cancel_ack(j, h)),
}


@pytest.mark.parametrize(
    "call, point",
    # a release tells Celery nothing
    [(c, p) for c in ENDS for p in [*WITHIN, *AFTER] if c != "release" or "outbox" not in p],
)
def test_an_end_that_dies_is_whole_or_nothing_and_its_repeat_is_answered(
    world: World, dies: Dies, call: str, point: str
):
    job = world.grant()
    if call == "acknowledge":
        world.queue.cancel(job.id)
    dies(call, point, job_id=job.id, lease_id=job.lease_id)
    goal, again = ENDS[call]
    found = world.queue.catalog.get(job.id)
    assert found.status is (Status.RUNNING if point in WITHIN else goal)
    if point in WITHIN:
        world.queue.heartbeat(job.id, holder(job), lease_seconds=60)
    told = again(world.queue, job.id, holder(job))
    assert told.status is goal
    assert point in WITHIN or told == found
    assert again(world.queue, job.id, holder(job)) == told
    world.heal()
    world.check(job)
    if told.status is Status.QUEUED:
        world.heal(seconds=20)
        world.finish(job)


@pytest.mark.parametrize("call", ENDS)
def test_a_lease_that_ended_unseen_by_redis_is_extended_for_one_look_at_most(
    world: World, dies: Dies, call: str
):
    job = world.grant()
    if call == "acknowledge":
        world.queue.cancel(job.id)
    dies(call, "indexing:Indexer.put before", job_id=job.id, lease_id=job.lease_id)
    world.heal()
    with pytest.raises(errors.JobStateConflict):
        world.queue.heartbeat(job.id, holder(job), lease_seconds=60)


@pytest.mark.parametrize(
    "running, point",
    [
        *((False, point) for point in [*WITHIN[1:], *AFTER]),
        # a request tells Celery nothing
        *((True, point) for point in [WITHIN[1], *AFTER]),
    ],
)
def test_a_cancel_that_dies_is_whole_or_nothing(
    world: World, dies: Dies, point: str, running: bool
):
    job = world.grant() if running else world.create()
    dies("cancel", point, job_id=job.id)
    asked = world.queue.catalog.get(job.id).cancel_requested_at is not None
    assert asked is (point in AFTER)
    world.queue.cancel(job.id)
    world.heal()
    world.check(job)
    if running:
        beat = world.queue.heartbeat(job.id, holder(job), lease_seconds=60)
        assert beat.job.cancel_requested_at is not None
        world.queue.cancel_ack(job.id, holder(job))
    assert world.queue.catalog.get(job.id).status is Status.CANCELLED
    world.check(job)


# -- heartbeats and events --------------------------------------------------------------------


@pytest.mark.parametrize("point", ["ledger.moves:renew after", "indexing:Indexer.put before"])
def test_a_heartbeat_that_dies_on_its_way_through_the_ledger_ends_no_lease(
    world: World, dies: Dies, point: str
):
    job = world.grant()
    world.queue.reservations.client.flushall()
    dies("heartbeat", point, job_id=job.id, lease_id=job.lease_id)
    world.heal()
    world.heal(seconds=59)
    world.check(job)
    assert world.queue.complete(job.id, holder(job)).status is Status.SUCCEEDED


@pytest.mark.parametrize("point", ["ledger.events:insert before", "ledger.events:insert after"])
def test_a_batch_of_events_that_dies_leaves_none_of_them(world: World, dies: Dies, point: str):
    job = world.grant()
    dies("append", point, job_id=job.id, lease_id=job.lease_id)
    assert len(world.queue.catalog.events(job.id)) == 2
    world.check(job)


# -- ingest -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "ledger.jobs:number after",
        "ledger.jobs:insert after",
        "ledger.events:insert after",
        "ledger.outbox:insert after",
        "ledger.intake:ingest after",
    ],
)
def test_an_ingest_that_dies_before_its_commit_has_taken_nothing(
    world: World, dies: Dies, point: str
):
    ids = [str(uuid4()) for _ in range(3)]
    dies("ingest", point, task_ids=ids)
    assert world.queue.catalog.page()[0] == []
    items = [NewJob(task_id=one, queue="remote", type="echo") for one in ids]
    outcomes = world.queue.ingest(items)
    assert [one.outcome for one in outcomes] == ["new"] * 3
    assert [job.seq for one in outcomes if (job := one.job)] == [1, 2, 3]


@pytest.mark.parametrize(
    "point",
    [
        "queue:JobQueue._place before",
        "indexing:Indexer.ensure after",
        "indexing:Indexer.put before",
        "reservations.store:Reservations.admit after",
    ],
)
def test_an_ingest_that_dies_before_the_message_is_acked_is_a_duplicate(
    world: World, dies: Dies, point: str
):
    world.create(priority=-1)
    ids = [str(uuid4()) for _ in range(3)]
    dies("ingest", point, task_ids=ids)
    world.heal()
    assert [job.id for _ in range(3) for job in claim(world.queue)] == ids
    items = [NewJob(task_id=one, queue="remote", type="echo") for one in ids]
    assert [one.outcome for one in world.queue.ingest(items)] == ["duplicate"] * 3


# -- expiry -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "reservations.store:Reservations.due after",
        "ledger.transitions:lose before",
        "ledger.transitions:end_attempt after",
        "ledger.transitions:lose after",
    ],
)
def test_an_expiry_that_dies_before_its_commit_is_resumed(world: World, dies: Dies, point: str):
    job = world.grant()
    world.clock.advance(61)
    dies("expire", point)
    assert world.queue.catalog.get(job.id).status is Status.RUNNING
    world.heal(seconds=11)
    lost = world.queue.catalog.get(job.id)
    assert (lost.status, lost.attempt) == (Status.QUEUED, 2)
    world.check(job)


def test_an_expiry_that_dies_leaves_a_heartbeat_its_chance(world: World, dies: Dies):
    job = world.grant()
    world.clock.advance(61)
    dies("expire", "reservations.store:Reservations.due after")
    world.queue.heartbeat(job.id, holder(job), lease_seconds=60)
    world.heal(seconds=11)
    world.check(job)
    assert world.queue.complete(job.id, holder(job)).status is Status.SUCCEEDED


@pytest.mark.parametrize(
    "point", ["indexing:Indexer.put before", "reservations.store:Reservations.admit after"]
)
def test_an_expiry_that_dies_after_its_commit_counts_once(world: World, dies: Dies, point: str):
    job = world.grant()
    world.clock.advance(61)
    dies("expire", point)
    world.heal(seconds=11)
    world.heal(seconds=11)
    lost = world.queue.catalog.get(job.id)
    assert (lost.status, lost.attempt) == (Status.QUEUED, 2)
    world.check(job)
    world.heal(seconds=40)
    world.finish(job)


# -- rebuild and reconcile --------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "reservations.store:Reservations.start_building after",
        "ledger.queues:bump_generation after",
        "reservations.store:Reservations.build before",
        "reservations.store:Reservations.build after",
        "reservations.store:Reservations.publish before",
        "reservations.store:Reservations.publish after",
    ],
)
def test_a_rebuild_that_dies_is_done_again(world: World, dies: Dies, point: str):
    running = world.grant()
    waiting = world.create()
    world.queue.reservations.client.flushall()
    dies("reconcile", point)
    if "publish after" not in point:
        reservations = world.queue.reservations
        assert reservations.generation("remote") is None, "nobody reads half an index"
        assert not world.queue.index.rebuild("remote"), "the dead one's duty is not over"
        # nor is it for ever, and nobody waits for its end here
        building = QueueKeys("remote").building
        assert reservations.client.pttl(building) > 0
        reservations.client.delete(building)
        assert world.upkeep.reconcile()["rebuilt"] == 1
    world.heal()
    world.check(running, waiting)
    world.queue.heartbeat(running.id, holder(running), lease_seconds=60)
    world.finish(waiting)
    assert world.queue.complete(running.id, holder(running)).status is Status.SUCCEEDED
    world.check(running)


@pytest.mark.parametrize(
    "point",
    [
        "reservations.store:Reservations.mark after",
        "reservations.store:Reservations.admit before",
        "reservations.store:Reservations.set_mark before",
        "reservations.store:Reservations.set_mark after",
    ],
)
def test_a_reconcile_that_dies_leaves_nothing_behind(
    world: World, dies: Dies, monkeypatch: pytest.MonkeyPatch, point: str
):
    seen = world.create(priority=-1)
    with monkeypatch.context() as patch:
        patch.setattr(world.queue.index, "put", lambda *_, **__: None)
        unseen = world.create()
    dies("reconcile", point)
    world.heal()
    world.check(seen, unseen)
    world.finish(unseen)


def test_a_change_that_no_index_saw_is_found_however_long_nobody_looked(world: World, dies: Dies):
    job = world.grant()
    world.upkeep.reconcile()
    world.queue.cancel(job.id)
    dies("acknowledge", "indexing:Indexer.put before", job_id=job.id, lease_id=job.lease_id)
    assert index_of(world.queue.reservations, job) == [Index.RESERVED]
    # all processes are down for a while, and whoever comes then remembers nothing
    world.clock.advance(3600)
    fresh = JobQueue(
        world.ledger, world.queue.reservations, clock=world.clock, settings=QueueSettings()
    )
    Upkeep(fresh).reconcile()
    assert index_of(world.queue.reservations, job) == []
