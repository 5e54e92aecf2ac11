"""The rows of workers: each is the lock under which its worker's claims are counted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from broker.ledger.jobs import jobs
from broker.ledger.models import WorkerRow
from broker.states import Status

workers: Final[sa.Table] = WorkerRow.__table__  # type: ignore[assignment]


def lock_worker(conn: sa.Connection, worker_id: str, queue: str, now: datetime) -> bool:
    """Hold a worker's row to the end of the transaction, so that its claims count one by one.

    False when it was told to drain, or to leave the queue alone: it is to be granted nothing.
    """
    row = {"worker_id": worker_id, "grants": 1, "first_seen_at": now}
    told = conn.execute(_lock_worker(conn.dialect.name), row).one()
    return told.draining_at is None and queue not in (told.paused or ())


@cache
def _lock_worker(dialect: str) -> Any:
    return counting(upsert(dialect, workers)).returning(workers.c.draining_at, workers.c.paused)


def counting(row: Any) -> Any:
    """Let an insert of a worker's row count a grant if it is there, which holds it as well."""
    return row.on_conflict_do_update(
        index_elements=[workers.c.worker_id], set_={"grants": workers.c.grants + 1}
    )


def say_hello(conn: sa.Connection, worker_id: str, info: Mapping[str, Any], now: datetime) -> None:
    """Record what a worker says of itself."""
    said = {"hello": dict(info), "hello_at": now}
    statement = upsert(conn.dialect.name, workers).values(
        worker_id=worker_id, grants=0, first_seen_at=now, **said
    )
    conn.execute(statement.on_conflict_do_update(index_elements=[workers.c.worker_id], set_=said))


def upsert(dialect: str, table: sa.Table) -> Any:
    """Begin an INSERT that may meet what is there; each dialect has it under its own insert()."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def running_of(conn: sa.Connection, worker_id: str) -> int:
    """Count the jobs a worker holds."""
    query = sa.select(sa.func.count()).where(
        jobs.c.claimed_by == worker_id, jobs.c.status == Status.RUNNING
    )
    return int(conn.execute(query).scalar_one())
