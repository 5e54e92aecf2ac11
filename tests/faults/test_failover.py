"""Reservations that fail over: the primary dies, or does not and there are two."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.clock import Clock
from broker.errors import ReservationsUnavailable
from broker.ledger.engine import Ledger
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Status
from broker.upkeep import Upkeep
from tests.sentinels import AT_ONCE, Pair
from tests.services import Valkey, until

pytestmark = [pytest.mark.faults, pytest.mark.slow]
FAILOVER_S = 60
ROUNDS = 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a primary, its replica in step, and a Sentinel that knows both."""
    made = Pair()
    yield made.start()
    made.remove()


@pytest.fixture
def queue(pair: Pair, migrated_sqlite: Path, tmp_path: Path) -> Iterator[JobQueue]:
    ledger = Ledger(
        f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}", synchronous="NORMAL"
    )
    reservations = Reservations.connect(pair.url)
    clock = Clock(reservations.clock_ms)
    yield JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    reservations.close()
    ledger.close()


def _queue(ledger: Ledger, server: Valkey) -> JobQueue:
    """Give the queue service of a process that is led to this server."""
    reservations = Reservations.connect(server.url)
    clock = Clock(reservations.clock_ms)
    return JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())


def claim(queue: JobQueue) -> Job | None:
    request = ClaimRequest(worker_id="w1", policy=Policy(), lease_seconds=600)
    found = queue.claim(request)
    return found[0] if found else None


def test_a_failover_keeps_leases_and_order(queue: JobQueue, pair: Pair) -> None:
    master, replica = pair.servers
    made = [
        queue.create(NewJob(task_id=f"t{n}", queue="remote", type="t", created_by="me"))
        for n in range(3)
    ]
    held = claim(queue)
    assert held is not None
    assert held.id == made[0].id
    holder = Holder(worker_id="w1", lease_id=held.lease_id)

    master.kill()
    with pytest.raises(ReservationsUnavailable):
        queue.reservations.clock_ms()
    # the ledger knows the lease, so its heartbeat goes on while nobody is master
    assert queue.heartbeat(held.id, holder, lease_seconds=600).job.id == held.id

    def works() -> bool:
        try:
            queue.reservations.mark_seen("w1", 1)
        except ReservationsUnavailable:
            return False
        return True

    until(works, FAILOVER_S, "the replica is master")
    pool = queue.reservations.client.connection_pool
    assert pool.get_master_address()[1] == replica.port  # type: ignore[attr-defined]

    # the bridge's sweep finds another server's mark and builds the index anew
    Upkeep(queue).expire()
    assert queue.heartbeat(held.id, holder, lease_seconds=600).job.id == held.id
    assert [job and job.id for job in (claim(queue), claim(queue), claim(queue))] == [
        made[1].id, made[2].id, None,
    ]  # fmt: skip
    assert queue.complete(held.id, holder, result=1).status is Status.SUCCEEDED


def test_two_primaries_never_grant_one_job_twice(
    start_valkey: Callable[..., Valkey], migrated_sqlite: Path, tmp_path: Path
) -> None:
    old = start_valkey()
    new = start_valkey("--replicaof", "127.0.0.1", str(old.port), *AT_ONCE)
    ledger = Ledger(
        f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}", synchronous="NORMAL"
    )
    queues = [_queue(ledger, server) for server in (old, new)]
    made = {
        queues[0].create(NewJob(task_id=f"t{n}", queue="remote", type="t", created_by="me")).id
        for n in range(2 * ROUNDS)
    }
    with old.client() as first, new.client() as second:
        until(lambda: first.wait(1, 100), FAILOVER_S, "the replica has all")
        second.replicaof("NO", "ONE")
    granted: list[Job] = []
    with ThreadPoolExecutor(2) as both:
        # one half of the edges asks either; both are offered the same jobs in the same order
        for _ in range(ROUNDS):
            granted += filter(None, both.map(claim, queues))
    assert {job.id for job in granted} == made
    assert [job.fence for job in granted] == [1] * len(made)
    # whoever is asked for it, the end of a job is one
    for number, job in enumerate(granted):
        holder = Holder(worker_id="w1", lease_id=job.lease_id)
        for queue in (queues[number % 2], queues[1 - number % 2]):
            assert queue.complete(job.id, holder, result=number).status is Status.SUCCEEDED
    for queue in queues:
        queue.reservations.close()
    ledger.close()
