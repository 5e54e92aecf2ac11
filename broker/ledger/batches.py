"""Several leases ended with success at once: one UPDATE for the jobs, one for their attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from broker import effects, figures
from broker.ledger import attempts, events, jobs, outbox
from broker.records import Job
from broker.states import Trigger, sources, target

_JOBS: Final = jobs.jobs
_ATTEMPTS: Final = attempts.attempts


@dataclass(frozen=True, slots=True)
class Ending:
    """A job whose row is locked and whose lease was checked, and what it ends with."""

    job: Job
    result: Any
    result_summary: str | None
    digest: str


def lock(conn: sa.Connection, ids: Sequence[str]) -> dict[str, Job]:
    """Read some jobs, holding their rows; all who lock several take them in this order."""
    query = (
        sa.select(*jobs.COLUMNS).where(_JOBS.c.id.in_(ids)).order_by(_JOBS.c.id).with_for_update()
    )
    return {row.id: jobs.to_job(row) for row in conn.execute(query)}


def complete(conn: sa.Connection, endings: Sequence[Ending], *, now: datetime) -> dict[str, Job]:
    """End all these leases with success; returns the jobs by id."""
    if not endings:
        return {}
    # one moment for all, and a job's story goes forward only
    now = max(jobs.not_before(one.job, now) for one in endings)
    rows = {row.id: row for row in conn.execute(_update(endings, now))}
    started = _end_attempts(conn, endings, now)
    log, told = [], []
    for one in endings:
        row = rows[one.job.id]
        job = jobs.to_job(row)
        payload = events.completed(one.result_summary)
        log.append(events.row(job, row.event_seq, "Job completed", payload, now))
        runtime_s = max(0.0, (now - started[job.id]).total_seconds())
        rows_told = effects.succeeded(job, row.canvas, now, runtime_s=runtime_s)
        told += [(job.id, effect) for effect in rows_told]
        figures.moved(job.queue, job.type, Trigger.COMPLETE)
    events.insert(conn, log)
    outbox.insert(conn, told, now)
    return {id_: jobs.to_job(row) for id_, row in rows.items()}


def _update(endings: Sequence[Ending], now: datetime) -> Any:
    """Build the UPDATE; what differs from job to job stands in a CASE by its id."""
    (running,) = sources(Trigger.COMPLETE)
    return (
        _JOBS.update()
        .where(_JOBS.c.id.in_([one.job.id for one in endings]), _JOBS.c.status == running)
        .values(
            status=target(running, Trigger.COMPLETE),
            version=_JOBS.c.version + 1,
            event_seq=_JOBS.c.event_seq + 1,
            updated_at=now,
            finished_at=now,
            result=_each("result", {one.job.id: one.result for one in endings}),
            result_summary=_each(
                "result_summary", {one.job.id: one.result_summary for one in endings}
            ),
            last_digest=_each("last_digest", {one.job.id: one.digest for one in endings}),
            last_lease_id=_JOBS.c.lease_id,
            **dict.fromkeys(
                (
                    "lease_id", "lease_seconds", "lease_expires_at", "held_until", "reason",
                    "error_message", "error_type", "traceback",
                )
            ),
        )
        .returning(*jobs.COLUMNS, _JOBS.c.event_seq, _JOBS.c.canvas)
    )  # fmt: skip


def _each(column: str, values: Mapping[str, Any]) -> sa.Case[Any]:
    kind = _JOBS.c[column].type
    told = {id_: sa.bindparam(None, value, type_=kind) for id_, value in values.items()}
    return sa.case(told, value=_JOBS.c.id)


def _end_attempts(
    conn: sa.Connection, endings: Sequence[Ending], now: datetime
) -> dict[str, datetime]:
    """Close the attempts of all; returns when each had started."""
    pairs = [(one.job.id, one.job.fence) for one in endings]
    statement = (
        _ATTEMPTS.update()
        .where(sa.tuple_(_ATTEMPTS.c.job_id, _ATTEMPTS.c.fence).in_(pairs))
        .values(ended_at=now, outcome="succeeded", error_message=None)
        .returning(_ATTEMPTS.c.job_id, _ATTEMPTS.c.started_at)
    )
    return {row.job_id: row.started_at for row in conn.execute(statement)}
