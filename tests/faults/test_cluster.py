"""Reservations on a Redis Cluster: a slot moves and a master dies while jobs are worked off."""

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

import pytest

from broker.clock import Clock
from broker.errors import Unavailable
from broker.ledger.engine import Ledger
from broker.policy import Lane, Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewJob
from broker.reservations.keys import QueueKeys
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Status
from broker.upkeep import Upkeep
from tests.clusters import Cluster, Node
from tests.contract.scripts.kit import ready
from tests.services import until

pytestmark = [pytest.mark.faults, pytest.mark.slow]
Q = "remote"
HOLDS_Q = QueueKeys(Q).pointer
JOBS = 90
AGAIN_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Give a cluster that is one test's alone."""
    with Cluster() as made:
        yield made


@pytest.fixture
def queue(cluster: Cluster, migrated_sqlite: Path, tmp_path: Path) -> Iterator[JobQueue]:
    """Give the queue service of one process on it."""
    ledger = Ledger(
        f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}", synchronous="NORMAL"
    )
    reservations = Reservations.connect(cluster.url)
    clock = Clock(reservations.clock_ms)
    yield JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    reservations.close()
    ledger.close()


def create(queue: JobQueue) -> list[str]:
    new = [NewJob(task_id=f"t{n}", queue=Q, type="t", created_by="me") for n in range(JOBS)]
    return [queue.create(one).id for one in new]


def claim(queue: JobQueue, worker: str = "w1") -> Job | None:
    request = ClaimRequest(worker_id=worker, policy=Policy(), lease_seconds=600)
    found = queue.claim(request)
    return found[0] if found else None


class Workers:
    """Threads that work jobs off, and one that looks after the index, as a bridge does."""

    def __init__(self, queue: JobQueue, jobs: list[str], *, keep: int = 0) -> None:
        self.queue = queue
        #: the last so many jobs wait for `hurry`, that something may happen before they are done
        self._keep = keep
        self.hurry = threading.Event()
        self.left = set(jobs)
        self.granted: Counter[str] = Counter()
        self.refused = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(f"w{n}",)) for n in range(3)]
        self._threads.append(threading.Thread(target=self._look_after))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.hurry.set()
        for thread in self._threads:
            thread.join()

    def done(self, jobs: int = JOBS) -> None:
        """Wait until as many more jobs have ended, or all."""
        goal = max(0, len(self.left) - jobs)
        until(lambda: len(self.left) <= goal, AGAIN_S, f"only {goal} jobs are left")

    def _work(self, name: str) -> None:
        while not self._stop.is_set() and self.left:
            try:
                job = claim(self.queue, name)
            except Unavailable:
                self.refused += 1
                self._stop.wait(0.02)
                continue
            if job is None:
                self._stop.wait(0.02)
                continue
            with self._lock:
                self.granted[job.id] += 1
            if len(self.left) <= self._keep:
                self.hurry.wait()
            holder = Holder(worker_id=name, lease_id=job.lease_id)
            self.queue.complete(job.id, holder, result=job.task_id)
            with self._lock:
                self.left.discard(job.id)

    def _look_after(self) -> None:
        upkeep = Upkeep(self.queue)
        while not self._stop.wait(0.1):
            with suppress(Unavailable):
                upkeep.expire()
                upkeep.reconcile()


def test_a_slot_moves_while_jobs_are_worked_off(queue: JobQueue, cluster: Cluster) -> None:
    jobs = create(queue)
    held = claim(queue)
    assert held is not None
    before = cluster.holder(HOLDS_Q)
    with Workers(queue, [one for one in jobs if one != held.id]) as workers:
        workers.done(20)
        for _ in cluster.move_slot(HOLDS_Q):
            # what is held, is held: by the ledger while the index is on its way
            holder = Holder(worker_id="w1", lease_id=held.lease_id)
            assert queue.heartbeat(held.id, holder, lease_seconds=600).job.id == held.id
        assert cluster.holder(HOLDS_Q) is not before
        workers.done()
    assert workers.granted == Counter({one: 1 for one in jobs if one != held.id})
    assert queue.complete(held.id, holder, result=1).status is Status.SUCCEEDED
    # another node's mark counts as lost: whatever the move left behind was built anew
    assert queue.reservations.mark(Q) is not None
    assert (queue.reservations.generation(Q) or 0) > 1


def test_a_master_dies_while_jobs_are_worked_off(queue: JobQueue, cluster: Cluster) -> None:
    jobs = create(queue)
    master = cluster.holder(HOLDS_Q)
    replica = cluster.add_replica(master)
    with Workers(queue, jobs, keep=JOBS // 2) as workers:
        workers.done(20)
        master.kill()
        workers.hurry.set()

        def follows() -> bool:
            return bool(replica.ask("INFO", "replication")["role"] == "master")

        until(follows, AGAIN_S, "the replica is master")
        workers.done()
    assert workers.granted == Counter(jobs)
    assert workers.refused > 0, "nobody noticed"


def test_a_wake_up_is_heard_at_any_node(valkey_cluster: Cluster) -> None:
    store = Reservations.connect(valkey_cluster.url)
    store.client.flushall()
    names: dict[Node, str] = {}
    numbers = count()
    while len(names) < len(valkey_cluster.masters):
        name = f"q{next(numbers)}"
        names.setdefault(valkey_cluster.holder(QueueKeys(name).pointer), name)
    for name in names.values():
        assert store.start_building(name, "t")
        store.publish(name, 1, "t", {})
    heard = set()
    for wake in store.wakes(timeout_s=0.1):
        if isinstance(wake, tuple):
            heard.add(wake[0])
        if heard == set(names.values()):
            break
        number = next(numbers)
        for name in names.values():
            store.admit(name, [ready(number, lane=Lane(name, "t", None, ()))])
    store.close()
