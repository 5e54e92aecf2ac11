"""Reads over many jobs, for the index and the sweeps; each goes along an SQL index of its own.

The order of each query is the order of its index: asked for another one, SQLite walks the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.jobs import COLUMNS, by_ids, chunks, get_many, jobs, to_job
from broker.records import Job
from broker.states import LIVE, Status


class Brief(NamedTuple):
    """What the index needs of a job that nobody runs; payloads and results may be large."""

    id: str
    queue: str
    seq: int
    version: int
    updated_at: datetime
    status: Status
    priority: int
    lane_spec: str
    next_attempt_at: datetime | None

    @property
    def member(self) -> str:
        """The job's place in a lane's index, as a whole job says it."""
        return f"{self.seq:016d}:{self.id}"


class Waits(NamedTuple):
    """Some queued jobs for an index that is built anew: there are many, so it is little of each."""

    #: (id, seq, version, priority, lane, whether it waits for a moment)
    rows: Sequence[Sequence[Any]]
    #: the moments of those that wait for one
    moments: dict[str, datetime]


_WAITS: Final = (
    *(jobs.c[name] for name in ("id", "seq", "version", "priority", "lane")),
    jobs.c.next_attempt_at.is_not(None),
)
_BRIEF: Final = tuple(jobs.c[name] for name in Brief._fields)


class Page(NamedTuple):
    """Some jobs for the index, those that run as a whole, and the last of them as it was read."""

    jobs: list[Job | Brief]
    last: Brief | None


def live_page(conn: sa.Connection, *, after: int, limit: int) -> Page:
    """Read the next jobs in enqueue order that have not ended."""
    rows: list[Brief] = []
    # One status at a time: only then does the index on (status, seq) give them in order. For both
    # at once SQLite sorts all live jobs for each page, and PostgreSQL wades through the ended ones.
    for status in LIVE:
        where = (jobs.c.status == status, jobs.c.seq > after)
        query = sa.select(*_BRIEF).where(*where).order_by(jobs.c.seq).limit(limit)
        rows += [Brief(*row) for row in conn.execute(query)]
    return _page(conn, sorted(rows, key=attrgetter("seq"))[:limit])


def waiting_page(conn: sa.Connection, queue: str, *, after: int, limit: int) -> Waits:
    """Read the next queued jobs of a queue, in enqueue order."""
    where = (jobs.c.status == Status.QUEUED, jobs.c.seq > after, jobs.c.queue == queue)
    query = sa.select(*_WAITS).where(*where).order_by(jobs.c.seq).limit(limit)
    rows = conn.execute(query).all()
    later = [row[0] for row in rows if row[5]]
    moments: dict[str, datetime] = {}
    for some in chunks(later):
        query = sa.select(jobs.c.id, jobs.c.next_attempt_at).where(jobs.c.id.in_(some))
        moments |= {job_id: moment for job_id, moment in conn.execute(query) if moment}
    return Waits(rows, moments)


def running_page(conn: sa.Connection, queue: str, *, after: int, limit: int) -> list[Job]:
    """Read the next running jobs of a queue, in enqueue order."""
    where = (jobs.c.status == Status.RUNNING, jobs.c.seq > after, jobs.c.queue == queue)
    return get_many(conn, *where, limit=limit)


def specs(conn: sa.Connection, ids: Iterable[str]) -> list[str]:
    """Read the lanes of some jobs."""
    found: list[str] = []
    for some in chunks(list(ids)):
        found += conn.scalars(sa.select(jobs.c.lane_spec).where(jobs.c.id.in_(some)))
    return found


def changed_page(conn: sa.Connection, *, after: tuple[datetime, int], limit: int) -> Page:
    """Read the next jobs that changed after (moment, seq), in the order they did."""
    moment, seq = after
    where = (jobs.c.updated_at >= moment, sa.or_(jobs.c.updated_at > moment, jobs.c.seq > seq))
    query = sa.select(*_BRIEF).where(*where).order_by(jobs.c.updated_at, jobs.c.seq)
    return _page(conn, [Brief(*row) for row in conn.execute(query.limit(limit))])


def _page(conn: sa.Connection, rows: Sequence[Brief]) -> Page:
    found: dict[str, Job | Brief] = {row.id: row for row in rows}
    running = [row.id for row in rows if row.status is Status.RUNNING]
    found |= {job.id: job for job in by_ids(conn, running)}
    return Page(list(found.values()), rows[-1] if rows else None)


def expired(conn: sa.Connection, *, now: datetime, limit: int, lock: bool = False) -> list[Job]:
    """Read queued jobs whose ``expires`` has passed, with ``lock`` those that nobody changes."""
    where = (_is(conn, Status.QUEUED), jobs.c.expires_at <= now)
    return _jobs(conn, where, jobs.c.expires_at, limit, lock=lock)


def ignored(conn: sa.Connection, *, asked: datetime, limit: int, lock: bool = False) -> list[Job]:
    """Read running jobs that were asked to stop before a moment; ``lock`` as in ``expired``."""
    where = (_is(conn, Status.RUNNING), jobs.c.cancel_requested_at <= asked)
    return _jobs(conn, where, jobs.c.cancel_requested_at, limit, lock=lock)


def _is(conn: sa.Connection, status: Status) -> sa.TextClause:
    # Spelt out, not bound: no planner matches a parameter with the condition of a partial index.
    condition = f"jobs.status = '{status}'"
    # SQLite prefers any equality to such an index, and would read all that is queued.
    return sa.text(f"likely({condition})" if conn.dialect.name == "sqlite" else condition)


def _jobs(
    conn: sa.Connection,
    where: Sequence[sa.ColumnElement[bool] | sa.TextClause],
    order: sa.ColumnElement[Any],
    limit: int,
    *,
    lock: bool,
) -> list[Job]:
    query = sa.select(*COLUMNS).where(*where).order_by(order).limit(limit)
    if lock:
        # whoever never waits for a row can be part of no deadlock
        query = query.with_for_update(skip_locked=True)
    return [to_job(row) for row in conn.execute(query)]


def read_ahead(conn: sa.Connection, queue: str) -> tuple[int, int]:
    """Return the number of the last task of a queue that no worker was given, and how many."""
    last, count = sa.func.max(jobs.c.seq), sa.func.count()
    row = conn.execute(sa.select(last, count).where(*_untouched(queue))).one()
    return int(row[0] or 0), int(row[1])


def read_ahead_page(conn: sa.Connection, queue: str, *, last: int, limit: int) -> list[str]:
    """Name tasks of a queue, up to a number, that no worker has been given."""
    query = sa.select(jobs.c.id).where(*_untouched(queue), jobs.c.seq <= last)
    return list(conn.scalars(query.order_by(jobs.c.seq).limit(limit)))


def _untouched(queue: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        jobs.c.status == Status.QUEUED,
        jobs.c.queue == queue,
        jobs.c.fence == 0,
        # a job that came over HTTP is no message
        jobs.c.envelope.is_not(None),
    )
