"""The one UPDATE that gives queued jobs to a worker, with its leases, events and effects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from broker import effects, figures
from broker.ledger import events, outbox
from broker.ledger.attempts import open_attempts
from broker.ledger.moves import Sql, transition
from broker.records import ClaimRequest, Job
from broker.states import Trigger, sources, target


def grant(
    conn: sa.Connection,
    ids: Sequence[str],
    request: ClaimRequest,
    *,
    lease_id: str,
    hold_s: float | None,
    digest: str | None,
    now: datetime,
) -> list[Job]:
    """Give the jobs that may run now to one worker, under one lease id; one UPDATE for all."""
    (queued,) = sources(Trigger.GRANT)
    granted = {
        "status": target(queued, Trigger.GRANT), "claimed_by": request.worker_id,
        "lease_id": lease_id, "lease_seconds": request.lease_seconds,
        "lease_expires_at": now + timedelta(seconds=request.lease_seconds),
        "held_until": None if hold_s is None else now + timedelta(seconds=hold_s),
        "next_attempt_at": None, "fence": Sql.NEXT_FENCE, "started_at": Sql.FIRST_START,
    }  # fmt: skip
    moved = transition(conn, ids, now=now, status=queued, due=True, to=granted) if ids else []
    if not moved:
        return []
    open_attempts(conn, [_attempt(one.job, request, digest) for one in moved])
    log, told = [], []
    for job, seq, _ in moved:
        payload = {"workerId": job.claimed_by, "attempt": job.attempt, "fence": job.fence}
        log.append(events.row(job, seq, "Job claimed", payload, job.updated_at))
        told += [(job.id, row) for row in effects.granted(job, job.updated_at)]
        figures.moved(job.queue, job.type, Trigger.GRANT)
    events.insert(conn, log)
    outbox.insert(conn, told, now)
    return sorted((one.job for one in moved), key=lambda job: (-job.priority, job.seq))


def _attempt(job: Job, request: ClaimRequest, digest: str | None) -> dict[str, Any]:
    return {
        "job_id": job.id, "fence": job.fence, "attempt": job.attempt, "run": job.run,
        "worker_id": request.worker_id, "lease_id": job.lease_id,
        "lease_seconds": request.lease_seconds, "claim_key": request.claim_key,
        "claim_digest": digest, "started_at": job.updated_at, "ended_at": None, "outcome": None,
        "error_message": None,
    }  # fmt: skip
