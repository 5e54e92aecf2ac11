"""The contract's objects as an edge sends them, key by key."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from broker.states import TERMINAL

#: statuses after which a job changes no more, unless it is redriven
ENDED: Final = frozenset(str(status) for status in TERMINAL)


class Job(TypedDict):
    """A job; times are RFC 3339 in UTC, ``None`` where there is nothing to say."""

    id: str
    type: str
    status: str
    queue: str
    priority: int
    payload: dict[str, Any]
    attempt: int
    maxAttempts: int
    claimedBy: str | None
    leaseExpiresAt: str | None
    nextAttemptAt: str | None
    result: Any
    resultSummary: str | None
    errorType: str | None
    errorMessage: str | None
    cancelRequestedAt: str | None
    cancelReason: str | None
    createdAt: str
    startedAt: str | None
    finishedAt: str | None
    updatedAt: str
    createdByUserId: str | None
    requestedByUserId: str | None
    affinityKey: str | None
    artifactsPath: str
    fence: int
    leaseId: str | None
    checkpoint: Any
    timeLimitSeconds: float | None
    softTimeLimitSeconds: float | None
    progress: dict[str, Any] | None


class Standing(TypedDict):
    """What a worker is told to do: claim nothing, or of some queues nothing; so many jobs."""

    workerId: str
    drain: bool
    concurrency: int | None
    pausedQueues: list[str]
    cursor: int


class Event(TypedDict):
    """One entry of a job's log; ``seq`` is the cursor after it."""

    id: str
    jobId: str
    seq: int
    level: str
    message: str
    payload: dict[str, Any] | None
    attempt: int
    fence: int
    createdAt: str


class Artifact(TypedDict):
    """A stored file of a job; ``digest`` is ``sha256:<hex>``."""

    id: str
    jobId: str
    name: str
    contentType: str | None
    sizeBytes: int
    digest: str
    storagePath: str
    attempt: int
    fence: int
    createdAt: str


class Attempt(TypedDict):
    """One lease of a job; ``outcome`` and ``endedAt`` are ``None`` while it is open."""

    jobId: str
    attempt: int
    run: int
    fence: int
    workerId: str
    startedAt: str
    endedAt: str | None
    outcome: str | None
    errorMessage: str | None


class Reason(TypedDict):
    """Something about a job itself that keeps it from running."""

    code: str
    message: str


class Judged(TypedDict):
    """A live worker, and the rule that keeps a job from it: ``none`` for an ``eligible`` one."""

    workerId: str
    lastSeenAt: str | None
    tokenId: str | None
    eligible: bool
    rule: str
    message: str


class Why(TypedDict):
    """Why a job is not running."""

    jobId: str
    status: str
    queue: str
    nextAttemptAt: str | None
    reasons: list[Reason]
    workers: list[Judged]


class RedriveItem(TypedDict):
    """What became of one job of a redrive."""

    id: str
    outcome: str
    status: str | None
    nextAttemptAt: str | None


class HeldJob(TypedDict):
    """A job that a worker holds, in short."""

    id: str
    type: str
    queue: str
    attempt: int
    fence: int
    startedAt: str | None
    cancelRequestedAt: str | None


class RemoteWorker(TypedDict):
    """A worker; what its last hello did not say is ``None``."""

    workerId: str
    online: bool
    draining: bool
    pausedQueues: list[str]
    lastSeenAt: str | None
    firstSeenAt: str | None
    instanceId: str | None
    version: str | None
    types: list[str] | None
    capabilities: list[str] | None
    concurrency: int | None
    heldJobs: list[HeldJob]


def given(**values: Any) -> dict[str, Any]:
    """Leave out what was not given: absent is the edge's default, null is a value."""
    return {name: value for name, value in values.items() if value is not None}
