"""Reads over many jobs, for the index and the sweeps; each goes along an SQL index of its own.

The order of each query is the order of its index: asked for another one, SQLite walks the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.jobs import by_ids, jobs, to_job
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


_BRIEF: Final = tuple(jobs.c[name] for name in Brief._fields)


class Page(NamedTuple):
    """Some jobs for the index, those that run as a whole, and the last of them as it was read."""

    jobs: list[Job | Brief]
    last: Brief | None


def live_page(conn: sa.Connection, *, after: int, limit: int, queue: str | None = None) -> Page:
    """Read the next jobs in enqueue order that have not ended."""
    where = [jobs.c.seq > after, jobs.c.status.in_(tuple(LIVE))]
    if queue is not None:
        where.append(jobs.c.queue == queue)
    return _page(conn, sa.select(*_BRIEF).where(*where).order_by(jobs.c.seq).limit(limit))


def changed_page(conn: sa.Connection, *, after: tuple[datetime, int], limit: int) -> Page:
    """Read the next jobs that changed after (moment, seq), in the order they did."""
    moment, seq = after
    where = (jobs.c.updated_at >= moment, sa.or_(jobs.c.updated_at > moment, jobs.c.seq > seq))
    query = sa.select(*_BRIEF).where(*where).order_by(jobs.c.updated_at, jobs.c.seq)
    return _page(conn, query.limit(limit))


def _page(conn: sa.Connection, query: sa.Select[Any]) -> Page:
    rows = [Brief(*row) for row in conn.execute(query)]
    found: dict[str, Job | Brief] = {row.id: row for row in rows}
    running = [row.id for row in rows if row.status is Status.RUNNING]
    found |= {job.id: job for job in by_ids(conn, running)}
    return Page(list(found.values()), rows[-1] if rows else None)


def expired(conn: sa.Connection, *, now: datetime, limit: int, lock: bool = False) -> list[Job]:
    """Read queued jobs whose ``expires`` has passed, with ``lock`` those that nobody changes."""
    where = (_is(Status.QUEUED), jobs.c.expires_at <= now)
    return _jobs(conn, where, jobs.c.expires_at, limit, lock=lock)


def ignored(conn: sa.Connection, *, asked: datetime, limit: int, lock: bool = False) -> list[Job]:
    """Read running jobs that were asked to stop before a moment; ``lock`` as in ``expired``."""
    where = (_is(Status.RUNNING), jobs.c.cancel_requested_at <= asked)
    return _jobs(conn, where, jobs.c.cancel_requested_at, limit, lock=lock)


def _is(status: Status) -> sa.ColumnElement[bool]:
    # spelt out, not bound: no planner matches a parameter with the condition of a partial index
    return jobs.c.status == sa.literal_column(f"'{status}'")


def _jobs(
    conn: sa.Connection,
    where: Sequence[sa.ColumnElement[bool]],
    order: sa.ColumnElement[Any],
    limit: int,
    *,
    lock: bool,
) -> list[Job]:
    columns = [jobs.c[name] for name in Job.__dataclass_fields__]
    query = sa.select(*columns).where(*where).order_by(order).limit(limit)
    if lock:
        # whoever never waits for a row can be part of no deadlock
        query = query.with_for_update(skip_locked=True)
    return [to_job(row) for row in conn.execute(query)]
