"""What a claim asks of the ledger: the one UPDATE that grants, and what it granted or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from broker import effects, figures
from broker.errors import InvalidPayload
from broker.ledger import events, jobs, outbox
from broker.ledger.attempts import claimed_under, open_attempts
from broker.ledger.moves import Sql, transition
from broker.ledger.transitions import cancel
from broker.ledger.workers import running_of
from broker.records import ClaimRequest, Job
from broker.states import Status, Trigger, sources, target

T = TypeVar("T")


def digest_of(request: ClaimRequest) -> str:
    """Return what makes two claims under one key the same one."""
    said = [
        request.lease_seconds, request.allowed_types, request.worker_capabilities,
        request.max_jobs, request.instance_id,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Terms(NamedTuple):
    """What a claim is granted on: under which lease, and for how long it may lie untaken."""

    request: ClaimRequest
    lease_id: str
    #: None when the claim holds its full lease at once
    hold_s: float | None
    #: of the request, when it came with a key
    digest: str | None
    now: datetime

    @property
    def until(self) -> datetime:
        """When the lease ends."""
        return self.now + timedelta(seconds=self.request.lease_seconds)

    @property
    def held_until(self) -> datetime | None:
        """When the grant goes back unless it was taken up."""
        return None if self.hold_s is None else self.now + timedelta(seconds=self.hold_s)


def grant(conn: sa.Connection, ids: Sequence[str], terms: Terms) -> list[Job]:
    """Give the jobs that may run now to one worker, under one lease id; one UPDATE for all."""
    request, now = terms.request, terms.now
    (queued,) = sources(Trigger.GRANT)
    granted = {
        "status": target(queued, Trigger.GRANT), "claimed_by": request.worker_id,
        "lease_id": terms.lease_id, "lease_seconds": request.lease_seconds,
        "lease_expires_at": terms.until, "held_until": terms.held_until,
        "next_attempt_at": None, "fence": Sql.NEXT_FENCE, "started_at": Sql.FIRST_START,
    }  # fmt: skip
    moved = transition(conn, ids, now=now, status=queued, due=True, to=granted) if ids else []
    if not moved:
        return []
    open_attempts(conn, [_attempt(one.job, request, terms.digest) for one in moved])
    log, told = [], []
    for job, seq, _ in moved:
        log.append(events.row(job, seq, "Job claimed", claimed(job), job.updated_at))
        told += [(job.id, row) for row in effects.granted(job, job.updated_at)]
        figures.moved(job.queue, job.type, Trigger.GRANT)
    events.insert(conn, log)
    outbox.insert(conn, told, now)
    return in_order(one.job for one in moved)


def claimed(job: Job) -> dict[str, Any]:
    """Return what a job's log says of a grant."""
    return {"workerId": job.claimed_by, "attempt": job.attempt, "fence": job.fence}


def _attempt(job: Job, request: ClaimRequest, digest: str | None) -> dict[str, Any]:
    return {
        "job_id": job.id, "fence": job.fence, "attempt": job.attempt, "run": job.run,
        "worker_id": request.worker_id, "lease_id": job.lease_id,
        "lease_seconds": request.lease_seconds, "claim_key": request.claim_key,
        "claim_digest": digest, "started_at": job.updated_at, "ended_at": None, "outcome": None,
        "error_message": None,
    }  # fmt: skip


def within_limit(conn: sa.Connection, request: ClaimRequest, ids: Sequence[T]) -> Sequence[T]:
    """Cut to the worker's free places; once its row is locked, nobody else fills them."""
    most = request.policy.max_concurrency
    if most is None:
        return ids
    return ids[: max(0, most - running_of(conn, request.worker_id))]


def replayed(conn: sa.Connection, request: ClaimRequest, digest: str, now: datetime) -> list[Job]:
    """Read what this claim key was answered within its lease.

    Raises:
        InvalidPayload: the key came with another request.
    """
    claimed = claimed_under(conn, request.worker_id, request.claim_key or "", now)
    if any(one.digest != digest for one in claimed):
        raise InvalidPayload("Idempotency-Key was used for another claim")
    # the newest of a job that came back under the same key
    newest = {one.job_id: one for one in sorted(claimed, key=attrgetter("fence"))}
    found = jobs.by_ids(conn, list(newest))
    # A lease that has ended since is named all the same: its holder learns it at the first call.
    # The one that is open now is another's, though it may be of another claim of this worker.
    return [
        replace(
            job, claimed_by=request.worker_id, lease_id=newest[job.id].lease_id,
            fence=newest[job.id].fence, attempt=newest[job.id].attempt,
        )
        for job in in_order(found)
    ]  # fmt: skip


def refused(conn: sa.Connection, ids: Iterable[str], now: datetime) -> list[Job]:
    """Read what the ledger did not grant, ending what expired while it waited.

    Put back as it is, an expired job would be the first to be offered again.
    """
    lost = {job.id: job for job in jobs.by_ids(conn, sorted(ids))}
    expired = [
        job.id
        for job in lost.values()
        if job.status is Status.QUEUED and job.expires_at is not None and job.expires_at <= now
    ]
    if expired:
        table = jobs.jobs
        due = (table.c.id.in_(expired), table.c.status == Status.QUEUED)
        for job in jobs.get_many(conn, *due, lock=True):
            lost[job.id] = cancel(conn, job, now=now, reason="expired")
    return list(lost.values())


def in_order(some: Iterable[Job]) -> list[Job]:
    """Sort as claims give them: priority, then enqueue order."""
    return sorted(some, key=lambda job: (-job.priority, job.seq))
