"""What is asked of the ledger about workers and queues; reads only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from broker.ledger.jobs import get_many, jobs
from broker.ledger.workers import workers
from broker.records import HeldJob, Job
from broker.states import Status

_WORKERS: Final = sa.select(
    workers.c.worker_id, workers.c.grants, workers.c.first_seen_at, workers.c.hello,
    workers.c.concurrency, workers.c.hello_at, workers.c.draining_at,
    workers.c.paused,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """One remote worker as the ledger knows it."""

    worker_id: str
    grants: int
    first_seen_at: datetime
    hello: Mapping[str, Any]
    #: what it was ordered to run at once
    concurrency: int | None = None
    #: when it started
    hello_at: datetime | None = None
    #: whether it was told to claim no more
    draining: bool = False
    #: queues from which it was told to claim nothing
    paused: tuple[str, ...] = ()


def known(conn: sa.Connection) -> dict[str, Known]:
    """Read all workers that ever claimed or said hello."""
    return _known(conn, _WORKERS)


def known_of(conn: sa.Connection, worker_ids: Sequence[str], *, limit: int) -> dict[str, Known]:
    """Read these workers, and others up to a limit."""
    some = _WORKERS.order_by(workers.c.worker_id).limit(limit)
    return _known(conn, some) | _known(conn, _WORKERS.where(workers.c.worker_id.in_(worker_ids)))


def held_by(
    conn: sa.Connection, worker_ids: Sequence[str], *, limit: int
) -> dict[str, list[HeldJob]]:
    """Read which jobs these workers hold, oldest first."""
    query = (
        sa.select(
            jobs.c.claimed_by, jobs.c.id, jobs.c.type, jobs.c.queue, jobs.c.attempt, jobs.c.fence,
            jobs.c.started_at, jobs.c.cancel_requested_at,
        )
        .where(jobs.c.claimed_by.in_(worker_ids), jobs.c.status == Status.RUNNING)
        .order_by(jobs.c.claimed_by, jobs.c.seq)
        .limit(limit)
    )  # fmt: skip
    held: dict[str, list[HeldJob]] = {}
    for worker_id, *values in conn.execute(query):
        held.setdefault(worker_id, []).append(HeldJob(*values))
    return held


def _known(conn: sa.Connection, query: sa.Select[Any]) -> dict[str, Known]:
    return {
        row.worker_id: Known(
            row.worker_id,
            row.grants,
            row.first_seen_at,
            row.hello or {},
            row.concurrency,
            row.hello_at,
            row.draining_at is not None,
            tuple(row.paused or ()),
        )
        for row in conn.execute(query)
    }


def running(conn: sa.Connection, *, limit: int, workers: Sequence[str] | None = None) -> list[Job]:
    """Read the jobs that these workers hold, or any."""
    whose = sa.true() if workers is None else jobs.c.claimed_by.in_(workers)
    return get_many(conn, sa.and_(jobs.c.status == Status.RUNNING, whose), limit=limit)


def backlog(conn: sa.Connection, queue: str, *, limit: int) -> int:
    """Count the queued jobs of a queue, no further than ``limit``."""
    some = sa.select(jobs.c.id).where(jobs.c.status == Status.QUEUED, jobs.c.queue == queue)
    count = sa.select(sa.func.count()).select_from(some.limit(limit).subquery())
    return int(conn.execute(count).scalar_one())


@dataclass(frozen=True, slots=True)
class Load:
    """The jobs of one queue, type and status, and since when the oldest is there."""

    queue: str
    type: str
    status: Status
    jobs: int
    oldest: datetime


def load(conn: sa.Connection, statuses: Collection[Status]) -> list[Load]:
    """Count the jobs in these statuses; reads all of their rows, so ask seldom."""
    query = (
        sa.select(
            jobs.c.queue, jobs.c.type, jobs.c.status, sa.func.count(),
            sa.func.min(jobs.c.created_at, type_=jobs.c.created_at.type),
        )
        .where(jobs.c.status.in_(statuses))
        .group_by(jobs.c.queue, jobs.c.type, jobs.c.status)
    )  # fmt: skip
    return [Load(*row) for row in conn.execute(query)]


@dataclass(frozen=True, slots=True)
class Kind:
    """The jobs of one queue and type that wait, since when the oldest does, and which that is."""

    queue: str
    type: str
    jobs: int
    oldest: datetime
    oldest_id: str


def waiting(conn: sa.Connection, *, since: datetime, limit: int) -> list[Kind]:
    """Count jobs that could have run since a moment, those that wait longest first.

    Reads all queued rows, so ask seldom.
    """
    due = sa.func.coalesce(jobs.c.next_attempt_at, jobs.c.created_at, type_=jobs.c.created_at.type)
    long = sa.and_(jobs.c.status == Status.QUEUED, due <= since)
    first = sa.func.min(due, type_=jobs.c.created_at.type)
    query = sa.select(jobs.c.queue, jobs.c.type, sa.func.count(), first).where(long)
    grouped = query.group_by(jobs.c.queue, jobs.c.type).order_by(first).limit(limit)
    found = []
    for queue, type_, number, oldest in conn.execute(grouped).all():
        same = sa.and_(long, jobs.c.queue == queue, jobs.c.type == type_)
        one = sa.select(jobs.c.id).where(same).order_by(due, jobs.c.seq).limit(1)
        found.append(Kind(queue, type_, number, oldest, conn.execute(one).scalar_one()))
    return found


def draining(conn: sa.Connection, names: Sequence[str]) -> set[str]:
    """Name those of some workers that were told to claim no more."""
    query = sa.select(workers.c.worker_id)
    query = query.where(workers.c.worker_id.in_(names), workers.c.draining_at.is_not(None))
    return set(conn.scalars(query))
