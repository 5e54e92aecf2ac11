"""What may be asked of a redrive, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from broker.states import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveFilter:
    """Which jobs are meant, of those that failed for good."""

    statuses: tuple[Status, ...] = (Status.DEAD_LETTER,)
    type: str | None = None
    queue: str | None = None
    #: those that ended then or later
    since: datetime | None = None
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Redrive:
    """What to bring back: a filter, or else the jobs with these ids."""

    ids: tuple[str, ...] = ()
    filter: RedriveFilter | None = None
    #: jobs a second that become ready; None is all at once
    max_rate: float | None = None
    dry_run: bool = False
    requested_by: str | None = None
    #: address of the caller, for the audit
    source: str | None = None


class RedriveOutcome(StrEnum):
    """What became of one job that was to be brought back."""

    #: it is queued, in a new run
    REDRIVEN = "redriven"
    #: it could be (dry run)
    MATCHED = "matched"
    #: there is no such job
    NOT_FOUND = "not_found"
    #: it has not failed for good: it waits, runs, succeeded or was cancelled
    NOT_DEAD = "not_dead"
    #: ingest could not read it, and could not now
    REJECTED = "rejected"
    #: its Celery ``expires`` has passed
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class RedriveItem:
    """One job of a redrive; ``next_attempt_at`` is when it becomes ready, None at once."""

    id: str
    outcome: RedriveOutcome
    status: Status | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """What a redrive did; ``more`` when its filter means more jobs than it may take at once."""

    matched: int
    redriven: int
    more: bool
    items: tuple[RedriveItem, ...]
