"""What workers are told to do, in SQL: one numbered standing order a worker, in its own row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from broker.ledger.jobs import jobs
from broker.ledger.models import CredentialRow
from broker.ledger.workers import upsert, workers
from broker.records import Orders
from broker.states import Status

credentials: Final[sa.Table] = CredentialRow.__table__  # type: ignore[assignment]

_ORDERS: Final = sa.select(
    workers.c.orders_seq, workers.c.draining_at, workers.c.concurrency, workers.c.paused
).where(workers.c.worker_id == sa.bindparam("worker"))
_CANCELS: Final = (
    sa.select(jobs.c.id)
    .where(
        jobs.c.claimed_by == sa.bindparam("worker"),
        jobs.c.status == Status.RUNNING,
        jobs.c.cancel_requested_at.is_not(None),
    )
    .order_by(jobs.c.seq)
)
_BUMP: Final = (
    workers.update()
    .where(workers.c.worker_id == sa.bindparam("worker"))
    .values(orders_seq=workers.c.orders_seq + 1)
)


def read(conn: sa.Connection, worker_id: str, *, after: int = -1) -> Orders:
    """Read a worker's orders; what to stop only when they are newer than ``after``."""
    row = conn.execute(_ORDERS, {"worker": worker_id}).first()
    if row is None:
        return Orders(worker_id=worker_id)
    newer = row.orders_seq > after
    return Orders(
        worker_id=worker_id,
        cursor=row.orders_seq,
        drain=row.draining_at is not None,
        concurrency=row.concurrency,
        cancels=tuple(conn.scalars(_CANCELS, {"worker": worker_id})) if newer else (),
        paused=tuple(row.paused or ()),
    )


def is_known(conn: sa.Connection, worker_id: str) -> bool:
    """Tell whether there ever was such a worker, or a token for one."""
    query = sa.select(
        sa.or_(
            sa.exists().where(workers.c.worker_id == worker_id),
            sa.exists().where(credentials.c.worker_id == worker_id),
        )
    )
    return bool(conn.scalar(query))


def change(conn: sa.Connection, worker_id: str, values: Mapping[str, Any], now: datetime) -> Orders:
    """Give a worker an order: ``draining_at`` or ``concurrency``."""
    row = {"worker_id": worker_id, "grants": 0, "first_seen_at": now, "orders_seq": 1}
    statement = upsert(conn.dialect.name, workers).values(row | dict(values))
    more = {**values, "orders_seq": workers.c.orders_seq + 1}
    conn.execute(statement.on_conflict_do_update(index_elements=[workers.c.worker_id], set_=more))
    return read(conn, worker_id)


def pause(
    conn: sa.Connection, worker_id: str, queue: str, *, paused: bool, now: datetime
) -> Orders:
    """Take one queue from a worker, or give it back; two at a time lose nothing."""
    # its row is held from here on
    names = set(change(conn, worker_id, {}, now).paused) - {queue}
    left = sorted(names | {queue} if paused else names) or None
    conn.execute(workers.update().where(workers.c.worker_id == worker_id).values(paused=left))
    return read(conn, worker_id)


def bump(conn: sa.Connection, job_id: str) -> str | None:
    """Count a new order for whoever holds a job, before its row is locked; returns who that is.

    Claims lock a worker's row before its jobs' too.
    """
    query = sa.select(jobs.c.claimed_by).where(jobs.c.id == job_id, jobs.c.status == Status.RUNNING)
    worker: str | None = conn.scalar(query)
    if worker is not None:
        conn.execute(_BUMP, {"worker": worker})
    return worker
