"""The one table of a job's statuses, triggers and transitions; SQL, Lua, docs and tests read it."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Status(StrEnum):
    """What a job is, on the wire and in the ledger."""

    #: waits for a claim, perhaps not before ``next_attempt_at``
    QUEUED = "queued"
    #: one worker holds its lease
    RUNNING = "running"
    #: the holder completed it
    SUCCEEDED = "succeeded"
    #: the holder failed it for good, or ingest rejected it
    FAILED = "failed"
    #: an operator, Celery's revoke or Celery's expires ended it
    CANCELLED = "cancelled"
    #: its attempts are used up; only redrive brings it back
    DEAD_LETTER = "dead_letter"


class Trigger(StrEnum):
    """What moves a job from one status to the next."""

    #: a claim won the conditional update
    GRANT = "grant"
    #: the holder says the work is done
    COMPLETE = "complete"
    #: the holder failed it, retryable, attempts left
    RETRY = "retry"
    #: the holder failed it, not retryable
    FAIL = "fail"
    #: the holder failed it, retryable, no attempts left
    EXHAUST = "exhaust"
    #: the lease ran out, attempts left
    LOSE = "lose"
    #: the lease ran out, no attempts left
    LOSE_LAST = "lose_last"
    #: the holder gave it back, or never took the grant up; costs no attempt
    RELEASE = "release"
    #: cancelled by operator, revoke or expires
    CANCEL = "cancel"
    #: brought back by an operator with fresh attempts
    REDRIVE = "redrive"


class Index(StrEnum):
    """Where a live job lies in the reservations; never in two of them at once."""

    READY = "ready"
    SCHEDULED = "scheduled"
    GRANTING = "granting"
    RESERVED = "reserved"


TRANSITIONS: Final = MappingProxyType(
    {
        (Status.QUEUED, Trigger.GRANT): Status.RUNNING,
        (Status.QUEUED, Trigger.CANCEL): Status.CANCELLED,
        (Status.RUNNING, Trigger.COMPLETE): Status.SUCCEEDED,
        (Status.RUNNING, Trigger.RETRY): Status.QUEUED,
        (Status.RUNNING, Trigger.FAIL): Status.FAILED,
        (Status.RUNNING, Trigger.EXHAUST): Status.DEAD_LETTER,
        (Status.RUNNING, Trigger.LOSE): Status.QUEUED,
        (Status.RUNNING, Trigger.LOSE_LAST): Status.DEAD_LETTER,
        (Status.RUNNING, Trigger.RELEASE): Status.QUEUED,
        (Status.RUNNING, Trigger.CANCEL): Status.CANCELLED,
        (Status.FAILED, Trigger.REDRIVE): Status.QUEUED,
        (Status.DEAD_LETTER, Trigger.REDRIVE): Status.QUEUED,
    },
)

#: something still happens to it by itself; out of the others leads a redrive, or nothing
LIVE: Final = frozenset(source for source, event in TRANSITIONS if event is not Trigger.REDRIVE)
TERMINAL: Final = frozenset(Status) - LIVE


def target(source: Status, trigger: Trigger) -> Status:
    """Name the status a trigger leads to; ``KeyError`` when the table has no such arrow."""
    return TRANSITIONS[source, trigger]


def sources(trigger: Trigger) -> tuple[Status, ...]:
    """Name the statuses a trigger may start from, for the WHERE of its conditional update."""
    return tuple(status for status, event in TRANSITIONS if event is trigger)


#: what a redrive may ask for, by the word for it
REDRIVABLE: Final = MappingProxyType(
    {
        **{str(status): (status,) for status in sorted(sources(Trigger.REDRIVE))},
        "any": sources(Trigger.REDRIVE),
    }
)


def check_sql(column: str = "status") -> str:
    """Render the statuses as the body of a SQL CHECK."""
    return f"{column} IN ({', '.join(repr(str(status)) for status in Status)})"


def mermaid() -> str:
    """Render the table as the picture in ``broker/README.md``."""
    lines = ["stateDiagram-v2", "    [*] --> queued: ingest / create"]
    lines += [
        f"    {source} --> {goal}: {trigger}" for (source, trigger), goal in TRANSITIONS.items()
    ]
    lines += [f"    {status} --> [*]" for status in Status if status in TERMINAL]
    return "\n".join(lines)
