"""What the contract says of jobs, written down a second time and much more simply."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from broker.records import NewJob
from broker.states import Status

HOLD: Final = timedelta(seconds=30)
GRACE: Final = timedelta(seconds=60)
LOST_S: Final = (22.5, 37.5)


@dataclass
class Lease:
    """Who holds a job, since when, and before when nobody may end that."""

    worker: str
    lease_id: str
    fence: int
    seconds: int
    granted_at: datetime
    held_until: datetime | None
    earliest: datetime
    #: the index was lost since, so nobody knows that it was not taken up
    doubtful: bool = False

    def beat(self, now: datetime) -> None:
        """Note a heartbeat."""
        self.held_until = None
        self.earliest = now + timedelta(seconds=self.seconds)

    def take_up(self) -> None:
        """Note another call on the job."""
        if self.held_until is not None:
            self.held_until = None
            self.earliest = self.granted_at + timedelta(seconds=self.seconds)


@dataclass
class ModelJob:
    """One job, with all that must be written of it."""

    id: str
    queue: str
    type: str
    seq: int
    priority: int = 0
    max_attempts: int = 3
    canvas: bool = False
    not_before: datetime | None = None
    expires: datetime | None = None
    status: Status = Status.QUEUED
    attempt: int = 1
    fence: int = 0
    lease: Lease | None = None
    cancel_at: datetime | None = None
    #: lease and call that ended the last lease, for repeats
    said: tuple[str, Any] | None = None
    titles: list[str] = field(default_factory=lambda: ["Job queued"])
    effects: list[str] = field(default_factory=lambda: ["event:task-received"])
    outcomes: list[str | None] = field(default_factory=list)

    @classmethod
    def rejected(cls, job_id: str, queue: str, seq: int) -> ModelJob:
        """Make what ingest refused."""
        return cls(
            job_id, queue, "x", seq, max_attempts=1, status=Status.FAILED,
            titles=["Job rejected"],
            effects=["event:task-rejected", "store:FAILURE", "event:task-failed"],
        )  # fmt: skip

    @classmethod
    def of(cls, job_id: str, seq: int, new: NewJob) -> ModelJob:
        """Make what was asked for."""
        return cls(
            job_id, new.queue, new.type, seq, new.priority, new.max_attempts,
            new.envelope is not None, new.not_before, new.expires_at,
        )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.status not in {Status.QUEUED, Status.RUNNING}

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among those that may be claimed."""
        return -self.priority, self.seq

    def ready(self, now: datetime) -> bool:
        """Whether a claim may get it."""
        return (
            self.status is Status.QUEUED
            and (self.not_before is None or self.not_before <= now)
            and not self.expired(now)
        )

    def expired(self, now: datetime) -> bool:
        """Whether it waited for too long."""
        late = self.expires is not None and self.expires <= now
        return self.status is Status.QUEUED and late

    def grant(self, lease: Lease) -> None:
        """Note that a claim won."""
        self.status, self.lease, self.not_before = Status.RUNNING, lease, None
        self.fence += 1
        assert lease.fence == self.fence
        self._tell("Job claimed", ["state:STARTED", "event:task-started"])
        self.outcomes.append(None)

    def complete(self) -> None:
        """Note that the holder is done."""
        self._end_lease("succeeded", Status.SUCCEEDED)
        links = ["link:", "link:", "chain:"] if self.canvas else []
        chord = ["chord:SUCCESS"] if self.canvas else []
        self._tell("Job completed", [*links, "store:SUCCESS", *chord, "event:task-succeeded"])

    def fail(self, *, retryable: bool, lost: bool = False) -> None:
        """Note that the holder gave up, or that its lease ran out."""
        if self.cancel_at is not None:
            self.cancel()
            return
        outcome = "lost" if lost else "failed"
        if retryable and self.attempt < self.max_attempts:
            self._end_lease(outcome, Status.QUEUED)
            self.attempt += 1
            title = "Lease expired" if lost else "Job failed (retryable)"
            self._tell(title, ["state:RETRY", "event:task-retried"])
            return
        self._end_lease(outcome, Status.DEAD_LETTER if retryable else Status.FAILED)
        more = ["chord:FAILURE", "chain:", "errback:"] if self.canvas else []
        title = "Lease expired" if lost else "Job failed"
        self._tell(title, ["store:FAILURE", *more, "event:task-failed"])

    def release(self, outcome: str) -> None:
        """Note that the holder gave it back, or never took it up."""
        if self.cancel_at is not None:
            self.cancel()
            return
        self._end_lease(outcome, Status.QUEUED)
        self._tell("Job released", [])

    def cancel(self) -> None:
        """Note that we ended it."""
        if self.status is Status.RUNNING:
            self._end_lease("cancelled", Status.CANCELLED)
        self.status, self.not_before = Status.CANCELLED, None
        chord = ["chord:REVOKED"] if self.canvas else []
        self._tell("Job cancelled", ["store:REVOKED", *chord, "event:task-revoked"])

    def ask_to_stop(self, now: datetime) -> None:
        """Note that somebody wants a running job to stop."""
        self.cancel_at = now
        self._tell("Cancel requested", [])

    def log(self, title: str) -> None:
        """Note that its holder, or ingest, has something to say."""
        self._tell(title, [])

    def may_end_by_itself(self, now: datetime) -> set[str]:
        """Name the outcomes that a sweep may give the open lease by now."""
        lease, found = self.lease, set()
        assert lease is not None
        if self.cancel_at is not None and self.cancel_at + GRACE <= now:
            found.add("cancelled")
        if lease.held_until is not None and lease.held_until <= now:
            found.add("undelivered")
        full = lease.granted_at + timedelta(seconds=lease.seconds)
        if lease.earliest <= now and (lease.held_until is None or lease.doubtful) and full <= now:
            found.add("lost")
        if found and self.cancel_at is not None:
            return {"cancelled"}
        return found

    def end_by_itself(self, outcome: str) -> None:
        """Note that a sweep ended the lease."""
        if outcome == "undelivered":
            self.release(outcome)
        elif outcome == "lost":
            self.fail(retryable=True, lost=True)
        else:
            self.cancel()

    def _end_lease(self, outcome: str, status: Status) -> None:
        self.outcomes[-1] = outcome
        self.status, self.lease = status, None

    def _tell(self, title: str, effects: list[str]) -> None:
        self.titles.append(title)
        self.effects += effects
