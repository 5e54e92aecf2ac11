"""Reads over many jobs, for the index and the sweeps; each goes along an SQL index of its own.

The order of each query is the order of its index: asked for another one, SQLite walks the table.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.jobs import COLUMNS, by_ids, chunks, jobs, to_job
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
    """What an index that is built anew needs of a queued job: there are many, so it is little."""

    id: str
    seq: int
    version: int
    priority: int
    lane: str
    next_attempt_at: datetime | None


_WAITS: Final = tuple(jobs.c[name] for name in Waits._fields)
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


class Waiting(NamedTuple):
    """Some queued jobs, each as ``Waits``, and the lanes that those before had none of."""

    rows: Sequence[sa.Row[Any]]
    specs: list[str]


def waiting(conn: sa.Connection, queue: str, *, size: int) -> Generator[Waiting]:
    """Read all queued jobs of a queue, some at a time; see ``_stream``."""
    known = set[str]()
    with closing(_stream(conn, _WAITS, queue, Status.QUEUED, size)) as pages:
        for rows in pages:
            new = {row.lane: row.id for row in rows if row.lane not in known}
            known |= new.keys()
            yield Waiting(rows, _specs(conn, new.values()))


def running(conn: sa.Connection, queue: str, *, size: int) -> Generator[list[Job]]:
    """Read all running jobs of a queue, some at a time; see ``_stream``."""
    with closing(_stream(conn, COLUMNS, queue, Status.RUNNING, size)) as pages:
        for rows in pages:
            yield [to_job(row) for row in rows]


def _stream(
    conn: sa.Connection,
    columns: Sequence[sa.ColumnElement[Any]],
    queue: str,
    status: Status,
    size: int,
) -> Generator[Sequence[sa.Row[Any]]]:
    """Read all of one status in one go and in no order, as they were when it began.

    Page by page PostgreSQL reads and sorts all that is left for each page when its statistics are
    old, and a ledger that has just been filled has none: the work grows by the square. Whoever
    stops midway closes it.
    """
    query = sa.select(*columns).where(jobs.c.status == status, jobs.c.queue == queue)
    with conn.execute(query, execution_options={"yield_per": size}) as rows:
        yield from rows.partitions()


def _specs(conn: sa.Connection, ids: Iterable[str]) -> list[str]:
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
