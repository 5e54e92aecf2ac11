"""The rows of jobs: numbered, inserted, read and locked; all in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from broker.ledger.columns import TICK
from broker.ledger.models import BridgeStateRow, JobRow
from broker.records import Job
from broker.states import Status

jobs: Final[sa.Table] = JobRow.__table__  # type: ignore[assignment]
numbering: Final[sa.Table] = BridgeStateRow.__table__  # type: ignore[assignment]

#: of a job, in the order in which ``to_job`` reads them
COLUMNS: Final = tuple(jobs.c[field.name] for field in fields(Job) if field.name in jobs.c)
#: ids in one IN (…): SQLite takes 32,766 parameters, planners prefer far fewer
CHUNK: Final = 500


def to_job(row: Sequence[Any]) -> Job:
    """Make a Job of a row that begins with its columns."""
    return Job(**{column.name: row[at] for at, column in enumerate(COLUMNS)})


def not_before(job: Job, now: datetime) -> datetime:
    """Return the moment, or the one after the job's last change or entry if that is later.

    The clocks of two processes differ by a few milliseconds, and a job's story goes forward only.
    What is yet to come counts from the moment itself: a clock that was an hour ahead when it made
    a job must not put its retries off by an hour.
    """
    last = job.updated_at if job.logged_at is None else max(job.updated_at, job.logged_at)
    return max(now, last + TICK)


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


# Statements of every claim and report are built once: building one cost more than running it.
_GET: Final = sa.select(*COLUMNS).where(jobs.c.id == sa.bindparam("job_id"))
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
    query = sa.select(*COLUMNS).where(*where).order_by(jobs.c.seq).limit(limit)
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


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut ids to what one IN (…) may hold."""
    return (ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK))


def by_ids(conn: sa.Connection, ids: Sequence[str]) -> list[Job]:
    """Read some jobs by id, in enqueue order."""
    found: list[Job] = []
    for some in chunks(ids):
        found += get_many(conn, jobs.c.id.in_(some))
    return found


def identities(conn: sa.Connection, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Read (task id, request digest), by id, of those jobs that are known."""
    columns = (jobs.c.id, jobs.c.task_id, jobs.c.request_digest)
    found: dict[str, tuple[str, str | None]] = {}
    for some in chunks(ids):
        query = sa.select(*columns).where(jobs.c.id.in_(some))
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
    query = sa.select(*COLUMNS).where(*where).order_by(*order).limit(limit)
    return [to_job(row) for row in conn.execute(query)]
