"""What has failed for good and may be brought back, and the update that does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker import effects, figures
from broker.ledger import events, jobs, moves, outbox
from broker.records import Job
from broker.redrive_shapes import RedriveFilter
from broker.states import Trigger, sources, target

_TABLE: Final = jobs.jobs


class Dead(NamedTuple):
    """A job that may be brought back, and what hangs on its task."""

    job: Job
    canvas: Mapping[str, Any] | None


def matching(conn: sa.Connection, wanted: RedriveFilter, *, now: datetime, limit: int) -> list[str]:
    """Name the oldest jobs that a filter means and that may be brought back."""
    where = [
        _TABLE.c.status.in_(wanted.statuses),
        sa.or_(_TABLE.c.reason.is_(None), _TABLE.c.reason != "rejected"),
        sa.or_(_TABLE.c.expires_at.is_(None), _TABLE.c.expires_at > now),
    ]
    if wanted.type is not None:
        where.append(_TABLE.c.type == wanted.type)
    if wanted.queue is not None:
        where.append(_TABLE.c.queue == wanted.queue)
    if wanted.since is not None:
        where.append(_TABLE.c.finished_at >= wanted.since)
    query = sa.select(_TABLE.c.id).where(*where).order_by(_TABLE.c.seq).limit(limit)
    return list(conn.scalars(query))


def read(conn: sa.Connection, ids: Sequence[str], *, lock: bool) -> dict[str, Dead]:
    """Read jobs by id, with ``lock`` holding their rows, taken in the order all take them."""
    query = sa.select(*jobs.COLUMNS, _TABLE.c.canvas).where(_TABLE.c.id.in_(ids))
    query = query.order_by(_TABLE.c.id)
    if lock:
        query = query.with_for_update()
    return {row.id: Dead(jobs.to_job(row), row.canvas) for row in conn.execute(query)}


def redrive(
    conn: sa.Connection,
    dead: Iterable[tuple[Dead, datetime | None]],
    *,
    requested_by: str | None,
    now: datetime,
) -> list[Job]:
    """Bring back jobs whose rows are locked, each with its own moment to be ready, or at once.

    What already followed from the first end (the chain's failure, the chord's part, the errbacks)
    does not follow again; links, which only a success fires, still wait for one.
    """
    back: list[Job] = []
    log, told = [], []
    for (job, canvas), due in dead:
        at = jobs.not_before(job, now)
        to: dict[str, Any] = {
            "status": target(job.status, Trigger.REDRIVE), "run": job.run + 1, "attempt": 1,
            "claimed_by": None, "reason": None, "finished_at": None, "next_attempt_at": due,
            "canvas": _left(canvas), "checkpoint": None, "cancel_reason": None,
        }  # fmt: skip
        if requested_by is not None:
            to["requested_by"] = requested_by
        [moved] = moves.transition(conn, [job.id], now=now, status=job.status, to=to)
        payload = {
            "run": moved.job.run, "requestedBy": requested_by,
            "nextAttemptAt": None if due is None else due.isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        log.append(events.row(moved.job, moved.event_seq, "Job redriven", payload, at))
        figures.moved(moved.job.queue, moved.job.type, Trigger.REDRIVE)
        error = effects.error_of(job)
        told += [(job.id, row) for row in effects.retried(moved.job, error, at, worker=None)]
        back.append(moved.job)
    events.insert(conn, log)
    outbox.insert(conn, told, now)
    return back


def may_be_redriven(job: Job) -> bool:
    """Tell whether the table of states has an arrow back from where the job is."""
    return job.status in sources(Trigger.REDRIVE)


def _left(canvas: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if canvas is None or not (canvas["links"] or canvas.get("stamps")):
        return None
    return {**canvas, "errbacks": 0, "chain": False, "chord": False}
