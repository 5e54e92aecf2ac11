"""Jobs and attempts in SQL: one conditional UPDATE a promise; all in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

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


_QUEUE_NAMES: Final = sa.select(queues.c.name).order_by(queues.c.name)


def queue_names(conn: sa.Connection) -> list[str]:
    """List the queues that ever had a job."""
    return list(conn.scalars(_QUEUE_NAMES))


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


# Statements of every claim and report are built once: building one cost more than running it.
_GET: Final = sa.select(*_COLUMNS).where(jobs.c.id == sa.bindparam("job_id"))
_GET_LOCKED: Final = _GET.with_for_update()


def get(conn: sa.Connection, job_id: str, *, lock: bool = False) -> Job | None:
    """Read one job, holding its row to the end of the transaction if asked to."""
    row = conn.execute(_GET_LOCKED if lock else _GET, {"job_id": job_id}).first()
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


class Sql(Enum):
    """A value of a transition that SQL itself knows."""

    NEXT_FENCE = "fence + 1"
    NEXT_ATTEMPT = "attempt + 1"
    OWN_LEASE = "the lease it had"
    FIRST_START = "when it first started, else now"


_NOW: Final = sa.bindparam("now_", type_=jobs.c.updated_at.type)
#: now, or the last change if that is later: clocks differ, and a job's story goes forward only
_NOT_BEFORE: Final = sa.case((jobs.c.updated_at > _NOW, jobs.c.updated_at), else_=_NOW)
_SQL: Final[Mapping[Sql, sa.ColumnElement[Any]]] = MappingProxyType(
    {
        Sql.NEXT_FENCE: jobs.c.fence + 1,
        Sql.NEXT_ATTEMPT: jobs.c.attempt + 1,
        Sql.OWN_LEASE: jobs.c.lease_id,
        Sql.FIRST_START: sa.func.coalesce(jobs.c.started_at, _NOT_BEFORE),
    }
)
#: what may be asked of the rows beside their ids
_GUARDS: Final[Mapping[str, sa.ColumnElement[bool]]] = MappingProxyType(
    {
        "status": jobs.c.status == sa.bindparam("is_status", type_=jobs.c.status.type),
        "lease_id": jobs.c.lease_id == sa.bindparam("is_lease_id"),
        "due": sa.and_(
            sa.or_(jobs.c.next_attempt_at.is_(None), jobs.c.next_attempt_at <= _NOW),
            sa.or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > _NOW),
        ),
    }
)


def transition(
    conn: sa.Connection,
    ids: Sequence[str],
    *,
    now: datetime,
    status: Status | None = None,
    lease_id: str | None = None,
    due: bool = False,
    to: Mapping[str, Any],
) -> list[Moved]:
    """Move those jobs that still are as expected, each by one version and one event number.

    Expected are a status, a lease, and that it is due: neither held back nor expired.
    """
    guards = {"status": status, "lease_id": lease_id, "due": due or None}
    asked = tuple(name for name, value in guards.items() if value is not None)
    known = tuple((name, value) for name, value in to.items() if isinstance(value, Sql))
    given = {name: value for name, value in to.items() if not isinstance(value, Sql)}
    parameters = {f"to_{name}": value for name, value in given.items()}
    parameters |= {"ids": list(ids), "now_": now, "is_status": status, "is_lease_id": lease_id}
    statement = _transition(asked, tuple(given), known)
    rows = conn.execute(statement, parameters)
    return [Moved(to_job(row), row.event_seq, row.canvas) for row in rows]


@cache
def _transition(
    asked: tuple[str, ...], given: tuple[str, ...], known: tuple[tuple[str, Sql], ...]
) -> sa.Update:
    """Build the one UPDATE of a kind of transition, once: building cost more than running it."""
    values = {name: sa.bindparam(f"to_{name}", type_=jobs.c[name].type) for name in given}
    return (
        jobs.update()
        .where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)))
        .where(*(_GUARDS[name] for name in asked))
        .values(
            version=jobs.c.version + 1,
            event_seq=jobs.c.event_seq + 1,
            updated_at=_NOT_BEFORE,
            **values,
            **{name: _SQL[value] for name, value in known},
        )
        .returning(*_COLUMNS, jobs.c.event_seq, jobs.c.canvas)
    )


#: what ends whatever lease a job has, and remembers it for repeats
END_LEASE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "last_lease_id": Sql.OWN_LEASE,
        "lease_id": None,
        "lease_seconds": None,
        "lease_expires_at": None,
        "held_until": None,
    }
)


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


_END_ATTEMPT: Final = (
    attempts.update()
    .where(attempts.c.job_id == sa.bindparam("job"), attempts.c.fence == sa.bindparam("at_fence"))
    .values(
        ended_at=sa.bindparam("now_", type_=attempts.c.ended_at.type),
        outcome=sa.bindparam("how"),
        error_message=sa.bindparam("why"),
    )
    .returning(attempts.c.started_at)
)


def end_attempt(
    conn: sa.Connection, job: Job, *, outcome: str, now: datetime, error: str | None = None
) -> datetime | None:
    """Record how the newest lease of a job ended; returns when it had started."""
    ended = {"job": job.id, "at_fence": job.fence, "now_": now, "how": outcome, "why": error}
    started: datetime | None = conn.scalar(_END_ATTEMPT, ended)
    return started


def lock_worker(conn: sa.Connection, worker_id: str, now: datetime) -> None:
    """Hold a worker's row to the end of the transaction, so that its claims count one by one."""
    row = {"worker_id": worker_id, "grants": 1, "first_seen_at": now}
    conn.execute(_lock_worker(conn.dialect.name), row)


@cache
def _lock_worker(dialect: str) -> Any:
    return _upsert(dialect, workers).on_conflict_do_update(
        index_elements=[workers.c.worker_id], set_={"grants": workers.c.grants + 1}
    )


def say_hello(conn: sa.Connection, worker_id: str, info: Mapping[str, Any], now: datetime) -> None:
    """Record what a worker says of itself."""
    said = {"hello": dict(info), "hello_at": now}
    upsert = _upsert(conn.dialect.name, workers).values(
        worker_id=worker_id, grants=0, first_seen_at=now, **said
    )
    conn.execute(upsert.on_conflict_do_update(index_elements=[workers.c.worker_id], set_=said))


def _upsert(dialect: str, table: sa.Table) -> Any:
    # both dialects have ON CONFLICT, each under its own insert()
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


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


_CLAIMED: Final = sa.select(
    attempts.c.job_id, attempts.c.lease_id, attempts.c.fence, attempts.c.attempt,
    attempts.c.claim_digest, attempts.c.started_at, attempts.c.lease_seconds,
).where(
    attempts.c.worker_id == sa.bindparam("worker"), attempts.c.claim_key == sa.bindparam("key")
)  # fmt: skip


def claimed_under(
    conn: sa.Connection, worker_id: str, claim_key: str, now: datetime
) -> list[Claimed]:
    """Name what a claim key was answered within its lease."""
    asked = {"worker": worker_id, "key": claim_key}
    return [
        Claimed(row.job_id, row.lease_id, row.fence, row.attempt, row.claim_digest)
        for row in conn.execute(_CLAIMED, asked)
        if row.started_at + timedelta(seconds=row.lease_seconds) > now
    ]
