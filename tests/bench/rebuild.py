"""How long a lost index takes to come back: `python -m tests.bench.rebuild`.

Jobs are put into the ledger, nine of ten queued and one running, the whole Redis is emptied, and
the rebuild is timed until the index counts again; processor time stands beside it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from broker.clock import Clock
from broker.ledger import intake, jobs, migrate, queues
from broker.ledger.engine import Ledger
from broker.policy import lane_of
from broker.queue import JobQueue
from broker.records import NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.upkeep import Upkeep
from tests.bench.measures import cpu_s
from tests.services import Postgres, Valkey

QUEUE = "remote"
CHUNK = 2000
DATABASES = ("sqlite", "postgresql")


@contextmanager
def database(name: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Start a migrated ledger; its address, and its process if it has one."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory(prefix="drawbridge-rebuild-") as folder:
            url = f"sqlite:///{Path(folder) / 'ledger.db'}"
            migrate.upgrade(url)
            yield url, {}
        return
    server = Postgres(fsync=True).start()
    try:
        url = server.create_database()
        migrate.upgrade(url)
        yield url, {"database": server.pid}
    finally:
        server.remove()


def fill(ledger: Ledger, number: int) -> None:
    """Put jobs into an empty ledger, some of them running."""
    now = datetime.now(UTC)
    with ledger.write() as conn:
        queues.add_queue(conn, QUEUE)
    for start in range(0, number, CHUNK):
        rows = []
        for seq in range(start + 1, min(start + CHUNK, number) + 1):
            new = NewJob(task_id=f"00000000-0000-4000-8000-{seq:012x}", queue=QUEUE, type="t")
            lane = lane_of(new.queue, new.type, new.payload, None)
            row = intake._row(intake._Fresh(new, lane, seq, now + jobs.TICK * seq, None, ""))
            if seq % 10 == 0:
                row |= {
                    "status": "running", "claimed_by": "w", "lease_id": f"{seq:032x}",
                    "lease_seconds": 60, "lease_expires_at": now, "fence": 1,
                }  # fmt: skip
            rows.append(row)
        with ledger.write() as conn:
            jobs.insert(conn, rows)


def measure(url: str, redis_url: str, number: int, pids: dict[str, int]) -> dict[str, float]:
    """Return the seconds a rebuild took, and of the processor in each process."""
    ledger = Ledger(url)
    reservations = Reservations.connect(redis_url)
    queue = JobQueue(
        ledger, reservations, clock=Clock(reservations.clock_ms), settings=QueueSettings()
    )
    fill(ledger, number)
    reservations.client.flushall()
    before, cpu, began = cpu_s(pids), time.process_time(), time.perf_counter()
    done = queue.index.rebuild(QUEUE)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    spent = {role: used - before[role] for role, used in cpu_s(pids).items()}
    assert done
    assert Upkeep(queue).reconcile()["repaired"] == 0, "what was rebuilt is right"
    reservations.close()
    ledger.close()
    return {"took": took, "python": cpu} | spent


@click.command()
@click.option("--jobs", "numbers", multiple=True, type=int, default=(10_000, 100_000))
@click.option("--database", "names", multiple=True, type=click.Choice(DATABASES), default=DATABASES)
def main(numbers: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Measure, and print a table."""
    print("| ledger | jobs | load | aim s | rebuild s | CPU s: Python | Redis | PostgreSQL |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        for number in numbers:
            valkey = Valkey("--appendonly", "yes").start()
            try:
                with database(name) as (url, pids):
                    found = measure(url, valkey.url, number, pids | {"redis": valkey.pid})
            finally:
                valkey.remove()
            figures = [os.getloadavg()[0], 1 + 0.03 * number / 1000, found["took"]]
            figures += [found["python"], found["redis"], found.get("database", 0.0)]
            shown = " | ".join(f"{figure:.2f}" for figure in figures)
            print(f"| {name} | {number:,} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
