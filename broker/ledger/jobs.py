"""Jobs and attempts in SQL: one conditional UPDATE a promise; all in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.models import AttemptRow, BridgeStateRow, JobRow, QueueRow, WorkerRow
from broker.records import Attempt, Job
from broker.states import Status

jobs: Final[sa.Table] = JobRow.__table__  # type: ignore[assignment]
attempts: Final[sa.Table] = AttemptRow.__table__  # type: ignore[assignment]
queues: Final[sa.Table] = QueueRow.__table__  # type: ignore[assignment]
workers: Final[sa.Table] = WorkerRow.__table__  # type: ignore[assignment]
numbering: Final[sa.Table] = BridgeStateRow.__table__  # type: ignore[assignment]

_COLUMNS: Final = tuple(jobs.c[field.name] for field in fields(Job))
_ATTEMPT: Final = tuple(attempts.c[field.name] for field in fields(Attempt))
TICK: Final = timedelta(microseconds=1)
#: ids in one IN (…): SQLite takes 32,766 parameters, planners prefer far fewer
CHUNK: Final = 500


def to_job(row: Sequence[Any]) -> Job:
    """Make a Job of a row that begins with its columns."""
    return Job(**{column.name: row[at] for at, column in enumerate(_COLUMNS)})


def number(conn: sa.Connection, count: int, now: datetime) -> tuple[int, datetime]:
    """Take ``count`` numbers and moments of creation, both above all taken before.

    The row stays locked to the end of the transaction, so the order of numbers is the order of
    commits, and a look for duplicates made after this call stays true.
    """
    row = conn.execute(sa.select(numbering).where(numbering.c.id == 1).with_for_update()).one()
    first = max(now, row.last_created_at + TICK)
    last = first + TICK * (count - 1)
    conn.execute(
        numbering.update()
        .where(numbering.c.id == 1)
        .values(job_seq=row.job_seq + count, last_created_at=last)
    )
    return row.job_seq + 1, first


def insert(conn: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert jobs; unique constraints guard what the caller has looked up."""
    conn.execute(jobs.insert(), list(rows))


def add_queue(conn: sa.Connection, name: str) -> bool:
    """Make a queue known; False when it was."""
    known = conn.execute(sa.select(queues.c.name).where(queues.c.name == name)).first()
    if known is None:
        conn.execute(queues.insert().values(name=name, generation=1))
    return known is None


def queue_names(conn: sa.Connection) -> list[str]:
    """List the queues that ever had a job."""
    return list(conn.scalars(sa.select(queues.c.name).order_by(queues.c.name)))


def generation(conn: sa.Connection, name: str) -> int | None:
    """Read a queue's generation."""
    return conn.scalar(sa.select(queues.c.generation).where(queues.c.name == name))


def bump_generation(conn: sa.Connection, name: str) -> int:
    """Start the next generation of a queue's reservations."""
    statement = (
        queues.update()
        .where(queues.c.name == name)
        .values(generation=queues.c.generation + 1)
        .returning(queues.c.generation)
    )
    return int(conn.execute(statement).scalar_one())


# -- reading ---------------------------------------------------------------------------------


def get(conn: sa.Connection, job_id: str, *, lock: bool = False) -> Job | None:
    """Read one job, holding its row to the end of the transaction if asked to."""
    query = sa.select(*_COLUMNS).where(jobs.c.id == job_id)
    row = conn.execute(query.with_for_update() if lock else query).first()
    return None if row is None else to_job(row)


def get_many(
    conn: sa.Connection,
    *where: sa.ColumnElement[bool],
    limit: int | None = None,
    lock: bool = False,
) -> list[Job]:
    """Read jobs in enqueue order; with ``lock`` those that nobody else is about to change."""
    query = sa.select(*_COLUMNS).where(*where).order_by(jobs.c.seq).limit(limit)
    if lock:
        # whoever never waits for a row can be part of no deadlock
        query = query.with_for_update(skip_locked=True)
    return [to_job(row) for row in conn.execute(query)]


def lock_in_order(conn: sa.Connection, ids: Sequence[str]) -> None:
    """Hold the rows of some jobs, so that two transactions that share some meet no deadlock.

    An UPDATE of many locks them in whatever order its plan has.
    """
    if len(ids) > 1:
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)
        conn.execute(query.with_for_update())


def by_ids(conn: sa.Connection, ids: Sequence[str]) -> list[Job]:
    """Read some jobs by id, in enqueue order."""
    found: list[Job] = []
    for at in range(0, len(ids), CHUNK):
        found += get_many(conn, jobs.c.id.in_(ids[at : at + CHUNK]))
    return found


def identities(conn: sa.Connection, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Read (task id, request digest), by id, of those jobs that are known."""
    columns = (jobs.c.id, jobs.c.task_id, jobs.c.request_digest)
    found: dict[str, tuple[str, str | None]] = {}
    for at in range(0, len(ids), CHUNK):
        query = sa.select(*columns).where(jobs.c.id.in_(ids[at : at + CHUNK]))
        found |= {row.id: (row.task_id, row.request_digest) for row in conn.execute(query)}
    return found


def listing(
    conn: sa.Connection,
    *,
    status: Status | None,
    type: str | None,  # noqa: A002
    queue: str | None,
    worker: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Job]:
    """List jobs, newest first, below (createdAt, id) of the last one of the page before."""
    wanted = {"status": status, "type": type, "queue": queue, "claimed_by": worker}
    where = [jobs.c[name] == value for name, value in wanted.items() if value is not None]
    if before is not None:
        where.append(
            sa.or_(
                jobs.c.created_at < before[0],
                sa.and_(jobs.c.created_at == before[0], jobs.c.id < before[1]),
            )
        )
    order = (jobs.c.created_at.desc(), jobs.c.id.desc())
    query = sa.select(*_COLUMNS).where(*where).order_by(*order).limit(limit)
    return [to_job(row) for row in conn.execute(query)]


def list_attempts(conn: sa.Connection, job_id: str) -> list[Attempt]:
    """List the leases of a job by fence."""
    query = sa.select(*_ATTEMPT).where(attempts.c.job_id == job_id).order_by(attempts.c.fence)
    return [Attempt(**row._mapping) for row in conn.execute(query)]  # noqa: SLF001


# -- transitions -----------------------------------------------------------------------------


class Moved(NamedTuple):
    """A job after its transition, with the number of its next event and what hangs on the task."""

    job: Job
    event_seq: int
    canvas: Mapping[str, Any] | None


def transition(
    conn: sa.Connection, *where: sa.ColumnElement[bool], now: datetime, **values: Any
) -> list[Moved]:
    """Move the jobs that match, each by one version and one event number."""
    statement = (
        jobs.update()
        .where(*where)
        .values(
            version=jobs.c.version + 1, event_seq=jobs.c.event_seq + 1, updated_at=now, **values
        )
        .returning(*_COLUMNS, jobs.c.event_seq, jobs.c.canvas)
    )
    return [Moved(to_job(row), row.event_seq, row.canvas) for row in conn.execute(statement)]


def end_lease() -> dict[str, Any]:
    """Return the values that end whatever lease a job has, and remember it for repeats."""
    return {
        "last_lease_id": jobs.c.lease_id,
        "lease_id": None,
        "lease_seconds": None,
        "lease_expires_at": None,
        "held_until": None,
    }


def renew(conn: sa.Connection, job: Job, *, until: datetime, lease_seconds: int) -> None:
    """Extend the lease of a job whose row is locked, for when the reservations cannot.

    The sweep that ends leases asks for this moment, so a heartbeat that got here first wins.
    """
    conn.execute(
        jobs.update()
        .where(jobs.c.id == job.id)
        .values(
            lease_expires_at=until, held_until=None, lease_seconds=lease_seconds,
            version=jobs.c.version + 1,
        )
    )  # fmt: skip


def open_attempts(conn: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Record leases that were granted."""
    conn.execute(attempts.insert(), list(rows))


def end_attempt(
    conn: sa.Connection, job: Job, *, outcome: str, now: datetime, error: str | None = None
) -> datetime | None:
    """Record how the newest lease of a job ended; returns when it had started."""
    statement = (
        attempts.update()
        .where(attempts.c.job_id == job.id, attempts.c.fence == job.fence)
        .values(ended_at=now, outcome=outcome, error_message=error)
        .returning(attempts.c.started_at)
    )
    started: datetime | None = conn.scalar(statement)
    return started


def lock_worker(conn: sa.Connection, worker_id: str, now: datetime) -> None:
    """Hold a worker's row to the end of the transaction, so that its claims count one by one."""
    row = {"worker_id": worker_id, "grants": 1, "first_seen_at": now}
    upsert = _upsert(conn, workers).values(row)
    conn.execute(
        upsert.on_conflict_do_update(
            index_elements=[workers.c.worker_id], set_={"grants": workers.c.grants + 1}
        )
    )


def say_hello(conn: sa.Connection, worker_id: str, info: Mapping[str, Any], now: datetime) -> None:
    """Record what a worker says of itself."""
    said = {"hello": dict(info), "hello_at": now}
    upsert = _upsert(conn, workers).values(worker_id=worker_id, grants=0, first_seen_at=now, **said)
    conn.execute(upsert.on_conflict_do_update(index_elements=[workers.c.worker_id], set_=said))


def _upsert(conn: sa.Connection, table: sa.Table) -> Any:
    # both dialects have ON CONFLICT, each under its own insert()
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: PLC0415

    return (postgresql if conn.dialect.name == "postgresql" else sqlite).insert(table)


def running_of(conn: sa.Connection, worker_id: str) -> int:
    """Count the jobs a worker holds."""
    query = sa.select(sa.func.count()).where(
        jobs.c.claimed_by == worker_id, jobs.c.status == Status.RUNNING
    )
    return int(conn.execute(query).scalar_one())


class Claimed(NamedTuple):
    """One lease that a claim key was answered with."""

    job_id: str
    lease_id: str
    fence: int
    attempt: int
    #: of the request that came with the key
    digest: str | None


def claimed_under(
    conn: sa.Connection, worker_id: str, claim_key: str, now: datetime
) -> list[Claimed]:
    """Name what a claim key was answered within its lease."""
    columns = (
        attempts.c.job_id, attempts.c.lease_id, attempts.c.fence, attempts.c.attempt,
        attempts.c.claim_digest, attempts.c.started_at, attempts.c.lease_seconds,
    )  # fmt: skip
    query = sa.select(*columns).where(
        attempts.c.worker_id == worker_id, attempts.c.claim_key == claim_key
    )
    return [
        Claimed(row.job_id, row.lease_id, row.fence, row.attempt, row.claim_digest)
        for row in conn.execute(query)
        if row.started_at + timedelta(seconds=row.lease_seconds) > now
    ]
