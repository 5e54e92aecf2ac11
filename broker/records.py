"""The shapes that cross the queue's border: jobs, events, artifacts, credentials; no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker.policy import Policy
from broker.states import Status

#: any JSON value
Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task once it is ours, as the ledger knows it; every time is UTC."""

    id: str
    task_id: str
    queue: str
    type: str
    seq: int
    run: int
    version: int
    status: Status
    reason: str | None
    priority: int
    payload: Mapping[str, Json]
    lane: str
    lane_spec: str
    affinity_key: str | None
    attempt: int
    max_attempts: int
    fence: int
    claimed_by: str | None
    lease_id: str | None
    lease_seconds: int | None
    lease_expires_at: datetime | None
    held_until: datetime | None
    next_attempt_at: datetime | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    result: Json
    result_summary: str | None
    error_type: str | None
    error_message: str | None
    traceback: str | None
    last_lease_id: str | None
    last_digest: str | None
    created_by: str | None
    requested_by: str | None
    retries: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    #: what the last holder left to the next when it gave the job back
    checkpoint: Json = None
    #: what the task's own ``time_limit`` and ``soft_time_limit`` say
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    #: moment of the last entry that was appended to its log
    logged_at: datetime | None = None
    #: how far its holder says it is; known to the reservations alone
    progress: Mapping[str, Json] | None = None

    @property
    def member(self) -> str:
        """The job's place in a lane's index: enqueue order, then id."""
        return f"{self.seq:016d}:{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a producer asks for; ``envelope`` is the raw Celery message of an ingested task."""

    task_id: str
    queue: str
    type: str
    payload: Mapping[str, Json] = field(default_factory=dict)
    priority: int = 0
    max_attempts: int = 3
    required_capabilities: tuple[str, ...] | None = None
    affinity_key: str | None = None
    created_by: str | None = None
    requested_by: str | None = None
    idempotency_key: str | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    #: the message's own retries, before we ever ran it
    retries: int = 0
    nesting: int = 0
    envelope: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A message that can not become a job, kept as a failed one with its reason."""

    task_id: str
    queue: str
    #: name of the task, or "unknown"
    type: str
    #: what is wrong, for people
    reason: str
    envelope: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of one message: ``outcome`` is new, duplicate, conflict or rejected."""

    task_id: str
    outcome: str
    job: Job | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who says something about a job it holds; clients of the base contract send no lease id."""

    worker_id: str
    lease_id: str | None = None


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a worker holds, in short."""

    id: str
    type: str
    queue: str
    attempt: int
    fence: int
    started_at: datetime | None
    cancel_requested_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWorker:
    """A remote worker: when it was seen, what its last hello said, what it holds."""

    worker_id: str
    online: bool
    last_seen_at: datetime | None
    first_seen_at: datetime | None
    hello: Mapping[str, Json]
    held: tuple[HeldJob, ...]
    #: it was told to claim no more
    draining: bool
    #: queues from which it was told to claim nothing
    paused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The good end of one of several jobs."""

    job_id: str
    lease_id: str | None = None
    result: Json = None
    result_summary: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """One claim call of an authenticated worker; ``policy`` is its credential's."""

    worker_id: str
    policy: Policy
    lease_seconds: int
    allowed_types: tuple[str, ...] | None = None
    worker_capabilities: tuple[str, ...] | None = None
    max_jobs: int = 1
    #: ``Idempotency-Key`` of the call
    claim_key: str | None = None
    instance_id: str | None = None
    #: queues that the worker's orders take from it for now
    paused: frozenset[str] = frozenset()

    @property
    def held(self) -> bool:
        """Whether the grant lapses unless taken up within the hold (decision 1)."""
        return self.claim_key is not None or self.instance_id is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The answer to a heartbeat: the job with its new deadline, and orders for the worker."""

    job: Job
    #: seconds until the lease ends unless renewed
    expires_in_s: float
    #: whether the worker shall finish what runs and claim no more
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker shall do as it stands; ``cursor`` grows with every change."""

    worker_id: str
    cursor: int = 0
    #: finish what runs and claim no more
    drain: bool = False
    #: how many jobs at once; None leaves it to the worker's owner
    concurrency: int | None = None
    #: jobs it holds that shall be stopped
    cancels: tuple[str, ...] = ()
    #: queues from which it shall claim nothing
    paused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """One entry a worker appends to a job's log."""

    message: str
    level: str = "info"
    payload: Mapping[str, Json] | None = None
    #: the worker's own number of it within the lease; a repeat adds nothing
    worker_seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of a job's append-only log; ``seq`` is its cursor, rising in commit order."""

    id: str
    job_id: str
    seq: int
    level: str
    message: str
    payload: Mapping[str, Json] | None
    attempt: int
    fence: int
    worker_seq: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One stored file of a job; ``storage_path`` is relative to the store, named by its sha256."""

    id: str
    job_id: str
    name: str
    content_type: str | None
    size_bytes: int
    #: ``sha256:<hex>``
    digest: str
    storage_path: str
    attempt: int
    fence: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Bytes that already lie in the artifact store, not yet named by any job."""

    digest: str
    size_bytes: int
    storage_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One lease of a job and how it ended; ``outcome`` is None while it is open."""

    job_id: str
    fence: int
    attempt: int
    run: int
    worker_id: str
    lease_id: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something Celery must be told, not yet told: one row of the outbox."""

    seq: int
    job_id: str
    #: state, link, chain, errback, store, chord or event
    kind: str
    data: Mapping[str, Json]
    tries: int
    created_at: datetime
