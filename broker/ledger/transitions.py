"""Every transition of a job in SQL: the check, the one update, its event and its effects.

Each function runs in the caller's transaction with the job's row locked, so what it checked is
still true when it writes. The statuses come from ``states.TRANSITIONS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from broker import effects, figures
from broker.backoff import lease_lost_delay_s, retry_delay_s
from broker.errors import JobStateConflict
from broker.ledger import events, outbox
from broker.ledger.attempts import end_attempt
from broker.ledger.jobs import not_before
from broker.ledger.moves import END_LEASE, Moved, Sql, transition
from broker.records import Holder, Job
from broker.states import Status, Trigger, sources, target

#: a worker may ask for a later retry than ours, up to this
RETRY_AFTER_MAX_S = 3600.0


def complete(
    conn: sa.Connection,
    job_id: str,
    holder: Holder,
    *,
    result: Any,
    result_summary: str | None,
    digest: str,
    now: datetime,
) -> Job | None:
    """End a lease with success, in one UPDATE that asks who holds it; None when none matched."""
    (running,) = sources(Trigger.COMPLETE)
    ended = {
        **END_LEASE, "status": target(running, Trigger.COMPLETE), "last_digest": digest,
        "finished_at": Sql.THE_MOMENT, "result": result, "result_summary": result_summary,
        "reason": None, "error_message": None, "error_type": None, "traceback": None,
    }  # fmt: skip
    found = transition(
        conn, [job_id], now=now, status=running, lease_id=holder.lease_id,
        claimed_by=holder.worker_id, to=ended,
    )  # fmt: skip
    if not found:
        return None
    moved, now = found[0], found[0].job.updated_at
    figures.moved(moved.job.queue, moved.job.type, Trigger.COMPLETE)
    runtime_s = _end(conn, moved, "succeeded", now)
    told = effects.succeeded(moved.job, moved.canvas, now, runtime_s=runtime_s)
    return _tell(conn, moved, "Job completed", events.completed(result_summary), told, now)


def fail(
    conn: sa.Connection,
    job: Job,
    *,
    error: Mapping[str, str | None],
    retryable: bool,
    retry_after_s: float | None,
    digest: str,
    now: datetime,
) -> Job:
    """End a lease with failure: another attempt, the dead letter, or failed for good."""
    told, now = now, not_before(job, now)
    if job.cancel_requested_at is not None:
        return cancel(conn, job, now=now, digest=digest)
    said = {
        "error_message": error["message"], "error_type": error["type"],
        "traceback": error["traceback"],
    }  # fmt: skip
    if retryable and job.attempt < job.max_attempts:
        if is_unwanted(job):
            return cancel(conn, job, now=now, digest=digest)
        delay_s = retry_delay_s(job.id, job.attempt)
        if retry_after_s is not None:
            delay_s = min(RETRY_AFTER_MAX_S, retry_after_s)
        due = told + timedelta(seconds=delay_s)
        return _retry(conn, job, Trigger.RETRY, due, said, now, digest=digest)
    trigger = Trigger.EXHAUST if retryable else Trigger.FAIL
    return _fail_for_good(conn, job, trigger, said, now, digest=digest, worker=job.claimed_by)


def lose(conn: sa.Connection, job: Job, *, now: datetime) -> Job:
    """End a lease that ran out: another attempt after a while, or the dead letter."""
    told, now = now, not_before(job, now)
    if job.cancel_requested_at is not None:
        return cancel(conn, job, now=now)
    said = {
        "error_message": f"Worker {job.claimed_by} lost its lease",
        "error_type": effects.WORKER_LOST,
        "traceback": None,
    }
    if job.attempt < job.max_attempts:
        if is_unwanted(job):
            return cancel(conn, job, now=now)
        due = told + timedelta(seconds=lease_lost_delay_s(job.id, job.attempt))
        return _retry(conn, job, Trigger.LOSE, due, said, now)
    return _fail_for_good(conn, job, Trigger.LOSE_LAST, said, now, worker=None)


def release(
    conn: sa.Connection,
    job: Job,
    *,
    outcome: str,
    reason: str | None = None,
    checkpoint: Any = None,
    digest: str | None = None,
    now: datetime,
) -> Job:
    """Give a job back; costs no attempt. ``outcome`` is released or undelivered.

    A ``checkpoint`` reaches the next holder; without one, the last one does.
    """
    now = not_before(job, now)
    if is_unwanted(job):
        return cancel(conn, job, now=now, digest=digest)
    left = {} if checkpoint is None else {"checkpoint": checkpoint}
    moved = _move(conn, job, Trigger.RELEASE, now, digest=digest, claimed_by=None, **left)
    _end(conn, moved, outcome, now, reason)
    payload = {"outcome": outcome, "reason": reason, "workerId": job.claimed_by}
    return _tell(conn, moved, "Job released", payload, [], now)


def acknowledge_cancel(
    conn: sa.Connection, job: Job, *, message: str | None, digest: str, now: datetime
) -> Job:
    """End a lease whose holder stopped because of a cancel request.

    Raises:
        JobStateConflict: nobody asked for one.
    """
    if job.cancel_requested_at is None:
        raise JobStateConflict("Nobody asked to cancel this job")
    return cancel(conn, job, now=now, digest=digest, message=message)


def cancel(
    conn: sa.Connection,
    job: Job,
    *,
    now: datetime,
    reason: str = "cancelled",
    digest: str | None = None,
    message: str | None = None,
    **values: Any,
) -> Job:
    """End a job from our side; ``reason`` is cancelled or expired."""
    now = not_before(job, now)
    running = job.status is Status.RUNNING
    moved = _move(
        conn, job, Trigger.CANCEL, now, digest=digest, finished_at=now, reason=reason,
        next_attempt_at=None, **values,
    )  # fmt: skip
    if running:
        _end(conn, moved, "cancelled", now, message)
    stopped = running and job.cancel_requested_at is not None
    # a digest is of its holder's own call
    worker = job.claimed_by if running and digest is not None else None
    told = effects.revoked(moved.job, moved.canvas, now, terminated=stopped, worker=worker)
    payload = {"reason": moved.job.cancel_reason or reason, "message": message}
    return _tell(conn, moved, "Job cancelled", payload, told, now)


def is_unwanted(job: Job) -> bool:
    """Tell whether a job shall have no attempt after the one that runs."""
    return job.cancel_requested_at is not None or job.cancel_reason is not None


# -- what they share -------------------------------------------------------------------------


def _move(
    conn: sa.Connection,
    job: Job,
    trigger: Trigger,
    now: datetime,
    *,
    digest: str | None = None,
    **values: Any,
) -> Moved:
    """Move one job whose row is locked; its lease ends, whatever the trigger."""
    goal = target(job.status, trigger)
    if job.status is Status.RUNNING:
        values = {**values, **END_LEASE, "last_digest": digest}
    moved = transition(
        conn, [job.id], now=now, status=job.status, lease_id=job.lease_id,
        to=values | {"status": goal},
    )  # fmt: skip
    if not moved:
        raise JobStateConflict
    figures.moved(job.queue, job.type, trigger)
    return moved[0]


def _retry(
    conn: sa.Connection,
    job: Job,
    trigger: Trigger,
    due: datetime,
    said: dict[str, str | None],
    now: datetime,
    *,
    digest: str | None = None,
) -> Job:
    moved = _move(
        conn, job, trigger, now, digest=digest, claimed_by=None, attempt=Sql.NEXT_ATTEMPT,
        next_attempt_at=due, **said,
    )  # fmt: skip
    lost = trigger is Trigger.LOSE
    outcome, title = ("lost", "Lease expired") if lost else ("failed", "Job failed (retryable)")
    _end(conn, moved, outcome, now, said["error_message"])
    payload = {"retryable": True, "status": str(moved.job.status), "nextAttemptAt": _iso(due)}
    told = effects.retried(
        moved.job, effects.error_of(moved.job), now, worker=None if lost else job.claimed_by
    )
    ended = replace(moved.job, attempt=job.attempt)
    moved = moved._replace(job=ended)
    _tell(conn, moved, title, payload | _why(said, job), told, now, level="warn")
    return replace(ended, attempt=job.attempt + 1)


def _fail_for_good(
    conn: sa.Connection,
    job: Job,
    trigger: Trigger,
    said: dict[str, str | None],
    now: datetime,
    *,
    digest: str | None = None,
    worker: str | None,
) -> Job:
    reason = None if trigger is Trigger.FAIL else "attempts_exhausted"
    moved = _move(
        conn, job, trigger, now, digest=digest, finished_at=now, reason=reason, **said
    )  # fmt: skip
    lost = trigger is Trigger.LOSE_LAST
    _end(conn, moved, "lost" if lost else "failed", now, said["error_message"])
    payload: dict[str, Any] = {
        "retryable": trigger is not Trigger.FAIL, "status": str(moved.job.status),
        "nextAttemptAt": None,
    }  # fmt: skip
    told = effects.failed(moved.job, moved.canvas, now, worker=worker)
    title = "Lease expired" if lost else "Job failed"
    return _tell(conn, moved, title, payload | _why(said, job), told, now, level="error")


def _why(said: Mapping[str, str | None], job: Job) -> dict[str, Any]:
    return {"errorMessage": said["error_message"], "workerId": job.claimed_by}


def _end(
    conn: sa.Connection, moved: Moved, outcome: str, now: datetime, error: str | None = None
) -> float:
    """Close the attempt; returns how many seconds it took."""
    started = end_attempt(conn, moved.job, outcome=outcome, now=now, error=error)
    return max(0.0, (now - started).total_seconds()) if started else 0.0


def _tell(
    conn: sa.Connection,
    moved: Moved,
    title: str,
    payload: Mapping[str, Any],
    told: Sequence[effects.Row],
    now: datetime,
    *,
    level: str = "info",
) -> Job:
    log = events.row(moved.job, moved.event_seq, title, payload, now, level=level)
    events.insert(conn, [log])
    outbox.insert(conn, [(moved.job.id, row) for row in told], now)
    return moved.job


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
