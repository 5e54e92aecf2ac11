"""Reservations behind a Sentinel: the master dies, its replica takes over, no promise is broken."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

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
from tests.services import Valkey, until, valkey_binary

pytestmark = [pytest.mark.faults, pytest.mark.slow]
SERVICE = "reservations"
FAILOVER_S = 60


class SentinelServer(Valkey):
    """One Sentinel, enough to agree with itself."""

    name = "sentinel"

    def __init__(self, master: Valkey) -> None:
        super().__init__()
        self.master = master

    def argv(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        return [str(valkey_binary()), str(config), "--sentinel"]

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


@pytest.fixture
def servers(start_valkey: Callable[..., Valkey]) -> Iterator[tuple[Valkey, Valkey, SentinelServer]]:
    """Give a master, its replica in step, and a Sentinel that knows both."""
    master = start_valkey()
    replica = start_valkey("--replicaof", "127.0.0.1", str(master.port))
    sentinel = SentinelServer(master)
    sentinel.start()

    def in_step() -> bool:
        with replica.client() as client, sentinel.client() as asked:
            linked = client.info("replication").get("master_link_status") == "up"
            return linked and bool(asked.execute_command("SENTINEL", "REPLICAS", SERVICE))

    until(in_step, FAILOVER_S, "the replica is in step")
    yield master, replica, sentinel
    sentinel.remove()


@pytest.fixture
def queue(
    servers: tuple[Valkey, Valkey, SentinelServer], migrated_sqlite: Path, tmp_path: Path
) -> Iterator[JobQueue]:
    ledger = Ledger(
        f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}", synchronous="NORMAL"
    )
    url = f"redis-sentinel://127.0.0.1:1,127.0.0.1:{servers[2].port}/{SERVICE}/0"
    reservations = Reservations.connect(url)
    clock = Clock(reservations.clock_ms)
    yield JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    reservations.close()
    ledger.close()


def claim(queue: JobQueue) -> Job | None:
    request = ClaimRequest(worker_id="w1", policy=Policy(), lease_seconds=600)
    found = queue.claim(request)
    return found[0] if found else None


def test_a_failover_keeps_leases_and_order(
    queue: JobQueue, servers: tuple[Valkey, Valkey, SentinelServer]
) -> None:
    master, replica, _ = servers
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
