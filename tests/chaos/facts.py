"""What was found after a run, as the oracle judges it: rows, index, results, files, promises.

Moments are epoch seconds, JSON columns are parsed. Imports nothing of the product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from tests.chaos.promises import Call

TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled", "dead_letter"})
STATUSES: Final = TERMINAL | {"queued", "running"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of `jobs`."""

    id: str
    task_id: str
    queue: str = "remote"
    type: str = "echo"
    run: int = 1
    status: str = "queued"
    reason: str | None = None
    payload: Any = None
    attempt: int = 1
    max_attempts: int = 3
    fence: int = 0
    claimed_by: str | None = None
    lease_id: str | None = None
    lease_seconds: int | None = None
    next_attempt_at: float | None = None
    expires_at: float | None = None
    cancel_requested_at: float | None = None
    result: Any = None
    result_summary: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    created_at: float = 0.0
    finished_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A row of `attempts`: one lease."""

    job_id: str
    fence: int
    attempt: int = 1
    run: int = 1
    worker_id: str = "w"
    lease_id: str = "lease"
    lease_seconds: int = 10
    started_at: float = 0.0
    ended_at: float | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A row of `events`."""

    job_id: str
    seq: int
    message: str
    payload: Any = None
    fence: int = 0
    worker_seq: int | None = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A row of `outbox`."""

    seq: int
    job_id: str
    kind: str
    data: Any = None
    created_at: float = 0.0
    done_at: float | None = None
    parked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A row of `artifacts`."""

    id: str
    job_id: str
    name: str
    digest: str
    size_bytes: int
    storage_path: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A job in an index of the reservations."""

    queue: str
    generation: int
    index: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message that Celery was sent on behalf of a job."""

    id: str
    parent_id: str | None
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one snapshot of the ledger said while the run went on."""

    at: float
    #: job id: its terminal row, as text
    ended: Mapping[str, str] = field(default_factory=dict)
    #: job id: its fence
    fences: Mapping[str, int] = field(default_factory=dict)
    #: worker id: jobs it runs
    running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: what, when, and whether it struck anything."""

    kind: str
    began_at: float
    ended_at: float
    in_flight: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """How long the index took to come back."""

    jobs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of one run after its end."""

    jobs: Sequence[Job] = ()
    attempts: Sequence[Attempt] = ()
    events: Sequence[Event] = ()
    effects: Sequence[Effect] = ()
    artifacts: Sequence[Artifact] = ()
    entries: Sequence[Entry] = ()
    #: lanes of the reservations whose first job is not told as such
    wrong_heads: Sequence[str] = ()
    #: queue: generation, as the ledger says
    generations: Mapping[str, int] = field(default_factory=dict)
    #: queue: generation, as the pointer in the reservations says
    pointers: Mapping[str, int] = field(default_factory=dict)
    #: task id: what the result backend holds
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sent: Sequence[Sent] = ()
    #: whether the broker itself drops what has expired: Celery tells RabbitMQ to
    broker_expires: bool = False
    #: messages that no bridge has taken, or that lie in an inbox
    left_in_broker: int = 0
    #: storage path: (sha256, size)
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    calls: Sequence[Call] = ()
    samples: Sequence[Sample] = ()
    faults: Sequence[Fault] = ()
    rebuilds: Sequence[Rebuild] = ()
    #: seconds from a job's creation to a waiting claim's answer, without faults
    wakes: Sequence[float] = ()
    #: worker id: how many jobs it may run at once
    caps: Mapping[str, int] = field(default_factory=dict)
    #: worker id: the types it may run
    types: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: worker id: when its credential's revocation was promised
    revoked: Mapping[str, float] = field(default_factory=dict)
    #: (begin, end) of the time under load and without faults
    quiet: tuple[float, float] = (0.0, 0.0)
    #: when the stores were read
    read_at: float = 0.0
    #: what a slow machine adds to each bound on time
    slack_s: float = 0.0

    @cached_property
    def job(self) -> Mapping[str, Job]:
        """Jobs by id."""
        return {job.id: job for job in self.jobs}

    @cached_property
    def by_task(self) -> Mapping[str, Sequence[Job]]:
        """Jobs by task id."""
        return group(self.jobs, "task_id")

    @cached_property
    def attempts_of(self) -> Mapping[str, Sequence[Attempt]]:
        """Leases by job, by fence."""
        return group(sorted(self.attempts, key=lambda one: one.fence), "job_id")

    @cached_property
    def lease(self) -> Mapping[tuple[str, str], Attempt]:
        """Leases by job and lease id."""
        return {(one.job_id, one.lease_id): one for one in self.attempts}

    @cached_property
    def events_of(self) -> Mapping[str, Sequence[Event]]:
        """Events by job, by number."""
        return group(sorted(self.events, key=lambda one: one.seq), "job_id")

    @cached_property
    def effects_of(self) -> Mapping[str, Sequence[Effect]]:
        """Effects by job, in order."""
        return group(sorted(self.effects, key=lambda one: one.seq), "job_id")

    @cached_property
    def calls_on(self) -> Mapping[tuple[str, str], Sequence[Call]]:
        """Calls by job and lease, in order of asking."""
        found: dict[tuple[str, str], list[Call]] = {}
        for call in self.calls:
            if call.job is not None and call.lease is not None:
                found.setdefault((call.job, call.lease), []).append(call)
        return found

    def asked(self, *ops: str) -> list[Call]:
        """Give the calls of these kinds, in order of asking."""
        return [call for call in self.calls if call.op in ops]


def group(rows: Sequence[Any], name: str) -> dict[str, list[Any]]:
    """Rows by one of their columns."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row, name), []).append(row)
    return found


def ends(event: Event) -> bool:
    """Whether an event tells of the end of a job's run."""
    if event.message == "Lease expired":
        return (event.payload or {}).get("status") in TERMINAL
    return event.message in {"Job completed", "Job failed", "Job cancelled", "Job rejected"}


def ends_lease(event: Event) -> bool:
    """Whether an event tells of the end of a lease."""
    more = {"Job failed (retryable)", "Lease expired", "Job released"}
    return event.message in more or (ends(event) and event.message != "Job rejected")
