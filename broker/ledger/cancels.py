"""What a wish that a job shall end makes of it: an end, a request, or no further attempt."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from broker.errors import JobStateConflict
from broker.ledger import events
from broker.ledger.moves import Moved, transition
from broker.ledger.transitions import cancel, is_unwanted
from broker.records import Job
from broker.states import TERMINAL, Status


def request(
    conn: sa.Connection,
    job: Job,
    *,
    reason: str | None,
    requested_by: str | None,
    stop: bool = True,
    now: datetime,
) -> Job:
    """Cancel a queued job, or ask the holder of a running one to stop; a repeat changes nothing.

    Without ``stop`` a running one goes on, but has no attempt after this one.

    Raises:
        JobStateConflict: it has ended otherwise.
    """
    if job.status is Status.CANCELLED or job.cancel_requested_at is not None:
        if job.status in TERMINAL and job.status is not Status.CANCELLED:
            raise JobStateConflict(f"The job is {job.status}")
        return job
    if job.status in TERMINAL:
        raise JobStateConflict(f"The job is {job.status}")
    asked: dict[str, Any] = {"cancel_requested_at": now, "cancel_reason": reason}
    if requested_by is not None:
        asked["requested_by"] = requested_by
    if job.status is Status.QUEUED:
        return cancel(conn, job, now=now, **asked)
    payload = {"reason": reason, "requestedBy": requested_by}
    if stop:
        moved = transition(conn, [job.id], now=now, to=asked)[0]
        return _log(conn, moved, "Cancel requested", payload)
    if is_unwanted(job):
        return job
    asked |= {"cancel_requested_at": None, "cancel_reason": reason or "revoked"}
    moved = transition(conn, [job.id], now=now, to=asked)[0]
    return _log(conn, moved, "No further attempt", payload)


def _log(conn: sa.Connection, moved: Moved, title: str, payload: Mapping[str, Any]) -> Job:
    entry = events.row(moved.job, moved.event_seq, title, payload, moved.job.updated_at)
    events.insert(conn, [entry])
    return moved.job
