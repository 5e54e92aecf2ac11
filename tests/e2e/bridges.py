"""What the bridge's tests stand on: real servers, real bridges, and remote workers in few lines."""

import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from click.testing import CliRunner
from kombu.utils.encoding import bytes_to_str

from broker import cli
from broker.catalog import Catalog
from broker.clock import Clock
from broker.errors import Unavailable
from broker.ledger.engine import Ledger
from broker.ledger.migrate import upgrade
from broker.orders import OrderBook
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from tests.processes import Process
from tests.services import Valkey, until

ROOT = Path(__file__).resolve().parents[2]
QUEUE = "remote"


class World:
    """A Celery broker, a result backend, the stores, and the orchestrator's plain app."""

    def __init__(
        self,
        broker: Valkey,
        stores: Valkey,
        folder: Path,
        process: Callable[..., Process],
        *,
        backend: str | None = None,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self.broker_url = broker.url
        self.backend_url = backend or broker.url.removesuffix("/0") + "/1"
        self.reservations_url = stores.url
        self.database_url = f"sqlite:///{folder / 'ledger.sqlite3'}"
        upgrade(self.database_url)
        self._process = process
        self._running: list[Process] = []
        self.ledger = Ledger(self.database_url, synchronous="NORMAL")
        self.reservations = Reservations.connect(self.reservations_url)
        self.queue = JobQueue(
            self.ledger,
            self.reservations,
            clock=Clock(self.reservations.clock_ms),
            settings=QueueSettings(),
        )
        self.catalog = Catalog(self.ledger)
        self.orders = OrderBook(self.ledger, self.reservations, self.queue.clock)
        self.app = Celery("orchestrator", broker=self.broker_url, backend=self.backend_url)
        self.app.conf.task_default_queue = "local"
        retry = {"max_retries": 1, "interval_start": 0}
        self.app.conf.result_backend_transport_options = {"retry_policy": retry}

    @property
    def environment(self) -> dict[str, str]:
        """What a bridge is told."""
        return {
            "DRAWBRIDGE_BROKER_URL": self.broker_url,
            "DRAWBRIDGE_RESULT_BACKEND": self.backend_url,
            "DRAWBRIDGE_DATABASE_URL": self.database_url,
            "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "NORMAL",
            "DRAWBRIDGE_RESERVATIONS_URL": self.reservations_url,
            "DRAWBRIDGE_ARTIFACTS_DIR": str(self.folder / "artifacts"),
            "DRAWBRIDGE_QUEUES": QUEUE,
        }

    def bridge(
        self, *arguments: str, name: str = "bridge", environ: Mapping[str, str] | None = None
    ) -> Process:
        """Start a bridge and wait until it runs."""
        argv = [str(Path(sys.executable).with_name("drawbridge")), "bridge", "-n", f"{name}@here"]
        started = self._process(
            [*argv, *arguments], env=self.environment | dict(environ or {}), cwd=ROOT
        )
        self._running.append(started)
        started.wait_for(rf"{name}@here ready")
        if "-A" not in arguments:  # whose app may say how its broker is spoken to
            # nobody keeps a control command for one that does not listen yet
            until(lambda: self._pings(f"{name}@here"), what=f"{name} listens")
        return started

    def _pings(self, node: str) -> bool:
        """Ask one node whether it is there; answers as soon as it does."""
        return bool(self.app.control.ping(destination=[node], limit=1, timeout=2))

    def doctor(self) -> dict[str, dict[str, str | None]]:
        """Run `drawbridge doctor`; what it found, by check."""
        result = CliRunner(env=self.environment).invoke(cli.drawbridge, ["doctor", "--json"])
        assert isinstance(result.exception, SystemExit | None), result.exception
        return {one["check"]: one for one in json.loads(result.output)["checks"]}

    @property
    def own_app(self) -> dict[str, str]:
        """What an orchestrator's own app is told."""
        return {"APP_BROKER": self.broker_url, "APP_BACKEND": self.backend_url}

    def local_worker(self, app: str = "tests.e2e.local_app", queues: str = "local") -> Process:
        """Start an ordinary Celery worker."""
        argv = [sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues]
        started = self._process(
            [*argv, "-P", "solo", "-n", "local@here", "-l", "INFO"],
            env=self.own_app,
            cwd=ROOT,
        )
        self._running.append(started)
        started.wait_for("local@here ready")
        return started

    def claim(self, worker_id: str = "worker-1", *, lease_seconds: int = 60) -> Job:
        """Claim as a remote worker does, waiting for a job."""
        return until(lambda: self.claim_now(worker_id, lease_seconds=lease_seconds), what="a job")

    def claim_now(
        self, worker_id: str = "worker-1", *, lease_seconds: int = 60, able: tuple[str, ...] = ()
    ) -> Job | None:
        """Claim once."""
        self.queue.seen(worker_id)
        request = ClaimRequest(
            worker_id=worker_id, policy=Policy(), lease_seconds=lease_seconds,
            worker_capabilities=able,
        )  # fmt: skip
        try:
            jobs = self.queue.claim(request)
        except Unavailable:
            return None
        return jobs[0] if jobs else None

    def complete(self, job: Job, result: Any) -> Job:
        """Complete a claimed job."""
        return self.queue.complete(job.id, holder(job), result=result)

    def fail(self, job: Job, message: str, **said: Any) -> Job:
        """Fail a claimed job."""
        return self.queue.fail(job.id, holder(job), error_message=message, **said)

    def send(self, task: str = "codex_exec", *args: Any, **options: Any) -> Any:
        """Send a task by name, as an orchestrator does."""
        return self.app.send_task(task, args=args, queue=QUEUE, **options)

    def raw(self) -> redis.Redis:
        """Return a client on the Celery broker."""
        return redis.Redis.from_url(self.broker_url)

    def leftovers(self) -> dict[str, int]:
        """Count what lies in the bridged queue and in inboxes."""
        with self.raw() as client:
            keys = [bytes_to_str(key) for key in client.keys(f"{QUEUE}*")]
            keys += [bytes_to_str(key) for key in client.keys("drawbridge.inbox:*")]
            return {key: int(client.llen(key)) for key in keys}

    def close(self) -> None:
        """Close what this process opened, and end what it started."""
        for one in self._running:
            one.close(signal.SIGKILL)  # a clean stop has tests of its own, and takes seconds
        # Results unsubscribe when they go: now, while the server is there, or never.
        gc.collect()
        if isinstance(self.app.backend, RedisBackend):
            self.app.backend.result_consumer.cancel_for = lambda _task_id: None
        self.app.close()
        self.ledger.close()
        self.reservations.close()


def holder(job: Job) -> Holder:
    """Return who holds a claimed job."""
    return Holder(worker_id=str(job.claimed_by), lease_id=job.lease_id)


@contextmanager
def world_of(
    start_valkey: Callable[..., Valkey], folder: Path, process: Callable[..., Process]
) -> Iterator[World]:
    """Make a world, and close it."""
    made = World(start_valkey(), start_valkey(), folder, process)
    try:
        yield made
    finally:
        made.close()
