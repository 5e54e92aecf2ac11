"""The edge alone under measurement: its processes, its stores, and jobs put there in bulk."""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from broker.clock import Clock
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.ledger.jobs import jobs
from broker.ledger.migrate import upgrade
from broker.ledger.models import BridgeStateRow
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.stack.programs import command
from tests.bench.measures import cpu_s, spent_ms
from tests.processes import Process
from tests.services import Postgres, Valkey

QUEUE: Final = "remote"
TYPE: Final = "noop"
#: jobs that one transaction ingests
PAGE: Final = 500


@dataclass(slots=True)
class Rig:
    """One edge on stores of its own; the queue is the same one, called from here."""

    url: str
    queue: JobQueue
    credentials: Credentials
    pids: dict[str, int]
    _before: dict[str, float] = field(default_factory=dict)

    def client(self, worker_id: str, **policy: Any) -> HttpClient:
        """Issue a token and speak as that worker."""
        now = self.queue.clock.now()
        made = self.credentials.create(
            "worker", worker_id=worker_id, policy=Policy(**policy), now=now
        )
        return HttpClient(self.url, made[1], worker_id)

    def fill(
        self, count: int, *, type_: str = TYPE, repository: str | None = None, lanes: int = 0
    ) -> None:
        """Queue some jobs as the bridge does, of one repository or spread over so many."""
        named = [f"{repository}{at}" for at in range(lanes)] or [repository]
        for begin in range(0, count, PAGE):
            self.queue.ingest(
                [
                    NewJob(
                        task_id=str(uuid.uuid4()), queue=QUEUE, type=type_,
                        payload={"repository": named[at % len(named)]} if repository else {},
                    )
                    for at in range(begin, min(count, begin + PAGE))
                ]
            )  # fmt: skip

    def flood(self, count: int, *, type_: str = TYPE) -> None:
        """Queue very many jobs at once: copies of one row, then an index built anew."""
        self.fill(1, type_=type_)
        with self.queue.ledger.engine.begin() as conn:
            model = conn.execute(sa.select(jobs).order_by(jobs.c.seq.desc()).limit(1)).one()
            if count > 1:
                with _without_indexes(conn):
                    _copy(conn, model.id, model.seq, count - 1)
        self.settle()
        self.queue.index.rebuild(QUEUE)

    def settle(self) -> None:
        """Gather the statistics that a database gathers by itself, sooner or later."""
        with self.queue.ledger.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("ANALYZE jobs"))

    def begin(self) -> None:
        """Count CPU from now."""
        self._before = cpu_s(self.pids)

    def spent_ms(self, count: int) -> dict[str, float]:
        """Return what each process used since, for one of ``count``."""
        return spent_ms(self._before, cpu_s(self.pids), count)


@contextmanager
def _without_indexes(conn: sa.Connection) -> Iterator[None]:
    """Let PostgreSQL build its indexes anew at the end: row by row takes several times as long."""
    if conn.dialect.name != "postgresql":
        yield
        return
    # a product's statement may not take minutes, a bench's may
    conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
    names = [str(index.name) for index in jobs.indexes]
    query = sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'jobs'")
    known = [row for row in conn.execute(query) if row.indexname in names]
    for row in known:
        conn.execute(sa.schema.DDL(f"DROP INDEX {row.indexname}"))
    yield
    for row in known:
        conn.execute(sa.schema.DDL(row.indexdef))


def _copy(conn: sa.Connection, model_id: str, seq: int, count: int) -> None:
    """Insert copies of a row; only what tells one job from another differs."""
    names = [column.name for column in jobs.columns]
    postgres = conn.dialect.name == "postgresql"
    made = (
        "md5('{seq}' || n.i)::uuid::text"
        if postgres
        else "printf('{seq:08x}-0000-4000-8000-%012x', n.i)"
    ).format(seq=seq)
    # each of its own moment, as if they had come one by one and long ago
    moment = (
        "jobs.{name} - interval '1 day' + n.i * interval '1 microsecond'"
        if postgres
        else "strftime('%Y-%m-%d %H:%M:%f000', jobs.{name}, '-1 day', (n.i / 1e3) || ' seconds')"
    )
    new = {"id": made, "task_id": made, "seq": f"{seq} + n.i"} | {
        name: moment.format(name=name) for name in ("created_at", "updated_at")
    }
    columns = ", ".join(new.get(name, f"jobs.{name}") for name in names)
    numbers = (
        "SELECT generate_series(1, :count) AS i"
        if postgres
        else "SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < :count"
    )
    statement = (
        f"WITH RECURSIVE n AS ({numbers}) INSERT INTO jobs ({', '.join(names)}) "  # noqa: S608
        f"SELECT {columns} FROM n, jobs WHERE jobs.id = :model"
    )
    conn.execute(sa.text(statement), {"model": model_id, "count": count})
    conn.execute(sa.update(BridgeStateRow).values(job_seq=BridgeStateRow.job_seq + count))


class Refused(Exception):
    """An answer that is not 200."""


class HttpClient:
    """One connection of a worker, as cheap as Python has them; not for two threads."""

    def __init__(self, url: str, token: str, worker_id: str) -> None:
        """Connect at the first call."""
        self.worker_id = worker_id
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=90)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(self, path: str, body: dict[str, Any], *, key: str | None = None) -> Any:
        """POST JSON to a route that must say 200, and return what it says."""
        if self._connection.sock is None:
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        said = json.dumps({"workerId": self.worker_id} | body)
        self._connection.request("POST", f"/api/queue{path}", said, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise Refused(f"{answer.status}: {text.decode()}")
        return json.loads(text)

    def claim(self, **more: Any) -> list[Any]:
        """Claim under a key of its own."""
        found = self.post("/jobs/claim", {"leaseSeconds": 600} | more, key=str(uuid.uuid4()))
        jobs_: list[Any] = found["jobs"]
        return jobs_

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()


@contextmanager
def rig(database: str, *, processes: int = 1) -> Iterator[Rig]:
    """Start stores and a real ``drawbridge edge``; ``database`` is sqlite, postgres or a URL.

    Durability is what a user gets: fsync of PostgreSQL on, SQLite in FULL, AOF every second.
    """
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        valkey = Valkey("--appendonly", "yes").start()
        held.callback(valkey.remove)
        pids = {"reservations": valkey.pid}
        url = database
        if database == "sqlite":
            url = f"sqlite:///{folder}/ledger.sqlite3"
        elif database == "postgres":
            server = Postgres(fsync=True).start()
            held.callback(server.remove)
            url, pids["database"] = server.create_database(), server.pid
        upgrade(url)
        env = {
            "DRAWBRIDGE_DATABASE_URL": url, "DRAWBRIDGE_RESERVATIONS_URL": valkey.url,
            "DRAWBRIDGE_DATA_DIR": str(folder), "DRAWBRIDGE_ARTIFACTS_DIR": str(folder / "files"),
            # one client stands for a fleet, and calls more often than a worker may
            "DRAWBRIDGE_CALLS_PER_SECOND": "100000",
        }  # fmt: skip
        argv = [
            command("drawbridge"),
            "edge",
            "--port",
            "0",
            "--json",
            "--processes",
            str(processes),
        ]
        edge = Process(argv, log=folder / "edge.log", env=os.environ | env, stdout_apart=True)
        held.callback(edge.close)
        said = edge.until(lambda: "\n" in edge.stdout() and edge.stdout(), 60, what="it listens")
        reservations = Reservations.connect(valkey.url)
        ledger = Ledger(url)
        held.callback(ledger.close)
        held.callback(reservations.close)
        clock = Clock(reservations.clock_ms)
        queue = JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
        credentials = Credentials(ledger)
        yield Rig(json.loads(said)["url"], queue, credentials, {"edge": edge.pid} | pids)
