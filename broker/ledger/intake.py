"""How jobs come into the ledger: numbered, unique by task id, each with its first event."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import sqlalchemy as sa

from broker import effects
from broker.errors import InvalidPayload
from broker.ledger import events, jobs, moves, outbox, queues
from broker.ledger.columns import TICK
from broker.policy import Lane, lane_of
from broker.records import Ingested, Job, NewJob, Rejection
from broker.states import Status

#: ids of tasks whose own id is not a UUID (decision 11)
TASK_NAMESPACE: Final = uuid5(NAMESPACE_URL, "urn:drawbridge:task")
#: celery's longest result id that every backend keeps
TASK_ID_MAX: Final = 255


def job_id_of(task_id: str) -> str:
    """Return the job id of a Celery task: the same when that is a UUID, else one made from it.

    A UUID in any other spelling (upper case, braces, no dashes) is another task to Celery, so it
    is another job to us.
    """
    with suppress(ValueError):
        if str(UUID(task_id)) == task_id:
            return task_id
    return str(uuid5(TASK_NAMESPACE, task_id))


def create(conn: sa.Connection, new: NewJob, now: datetime) -> Job:
    """Insert a job asked for over HTTP; the same creator's same key gets the same job.

    Raises:
        InvalidPayload: the key was used for another request, or the payload does not fit.
    """
    lane = _lane(new)
    seq, created_at = jobs.number(conn, 1, now)
    if new.idempotency_key is not None:
        known = conn.execute(
            sa.select(jobs.jobs.c.id, jobs.jobs.c.request_digest).where(
                jobs.jobs.c.created_by == new.created_by,
                jobs.jobs.c.idempotency_key == new.idempotency_key,
            )
        ).first()
        if known is not None:
            if known.request_digest != digest(new):
                raise InvalidPayload("idempotencyKey was used for another request")
            found = jobs.get(conn, known.id)
            assert found is not None  # noqa: S101  read under the numbering lock
            return found
    return _insert(conn, [_Fresh(new, lane, seq, created_at, None, digest(new))])[0]


def ingest(
    conn: sa.Connection, items: Sequence[NewJob | Rejection], now: datetime
) -> list[Ingested]:
    """Insert what a bridge took from Celery; every item ends as a row, a duplicate or a conflict.

    A task id seen before with the same retries and nesting is a duplicate. With others it is a
    conflict, told in the job's log (decision 13); so is one whose id hides behind another's.
    """
    seq, created_at = jobs.number(conn, len(items), now)
    ids = [job_id_of(item.task_id) for item in items]
    before = jobs.identities(conn, ids)
    known = dict(before)
    fresh: list[_Fresh] = []
    conflicts: list[tuple[str, NewJob | Rejection]] = []
    told: list[tuple[str, str]] = []
    for at, (job_id, item) in enumerate(zip(ids, items, strict=True)):
        identity = (item.task_id, digest(item))
        if job_id in known:
            same = known[job_id] == identity
            told.append((item.task_id, "duplicate" if same else "conflict"))
            if not same and job_id in before:
                conflicts.append((job_id, item))
            continue
        new, lane, reason = _accept(item)
        known[job_id] = identity
        moment = created_at + TICK * at
        fresh.append(_Fresh(new, lane, seq + at, moment, reason, identity[1]))
        told.append((item.task_id, "new" if reason is None else "rejected"))
    made = {job.task_id: job for job in _insert(conn, fresh)}
    # in order of ids, as a grant of several locks them
    for job_id, item in sorted(conflicts, key=itemgetter(0)):
        _tell_conflict(conn, job_id, item, now)
    return [
        Ingested(task_id, outcome, made[task_id] if outcome in {"new", "rejected"} else None)
        for task_id, outcome in told
    ]


class _Fresh(NamedTuple):
    """What is inserted."""

    new: NewJob
    lane: Lane
    seq: int
    created_at: datetime
    #: why it was rejected, or None
    reason: str | None
    digest: str


def digest(item: NewJob | Rejection) -> str:
    """Return what makes two requests the same one.

    For a Celery message that is its retries and nesting (its id is compared already); for HTTP the
    whole request.
    """
    if isinstance(item, Rejection):
        return "rejected"
    if item.idempotency_key is None:
        return f"{item.retries}:{item.nesting}"
    said = [
        item.queue, item.type, item.payload, item.priority, item.max_attempts, item.affinity_key,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _lane(new: NewJob) -> Lane:
    return lane_of(new.queue, new.type, new.payload, new.required_capabilities)


def _accept(item: NewJob | Rejection) -> tuple[NewJob, Lane, str | None]:
    """Return the job to insert and, for one that cannot run, why."""
    if isinstance(item, NewJob):
        try:
            return item, _lane(item), None
        except InvalidPayload as error:
            return item, Lane(item.queue, item.type, None, ()), error.message
    new = NewJob(
        task_id=item.task_id, queue=item.queue, type=item.type, max_attempts=1,
        envelope=item.envelope,
    )  # fmt: skip
    return new, Lane(item.queue, item.type, None, ()), item.reason


def _insert(conn: sa.Connection, fresh: Sequence[_Fresh]) -> list[Job]:
    if not fresh:
        return []
    for name in {one.new.queue for one in fresh}:
        queues.add_queue(conn, name)
    rows = [_row(one) for one in fresh]
    jobs.insert(conn, rows)
    made = [_job(row) for row in rows]
    log, told = [], []
    for job, row in zip(made, rows, strict=True):
        if job.status is Status.FAILED:
            payload = {"reason": job.error_message}
            log.append(events.row(job, 1, "Job rejected", payload, job.created_at, level="error"))
            told += [(job.id, e) for e in effects.rejected(job, row["canvas"], job.created_at)]
        else:
            log.append(events.row(job, 1, "Job queued", {"queue": job.queue}, job.created_at))
            told += [(job.id, e) for e in effects.received(job, row["envelope"], job.created_at)]
    events.insert(conn, log)
    outbox.insert(conn, told, made[0].created_at)
    return made


def _row(one: _Fresh) -> dict[str, Any]:
    new = one.new
    row: dict[str, Any] = dict.fromkeys(column.name for column in jobs.jobs.c)
    row |= {
        "id": job_id_of(new.task_id), "task_id": new.task_id, "queue": new.queue, "type": new.type,
        "seq": one.seq, "run": 1, "version": 1, "status": Status.QUEUED, "priority": new.priority,
        "payload": dict(new.payload), "lane": one.lane.key, "lane_spec": one.lane.spec(),
        "affinity_key": new.affinity_key, "attempt": 1, "max_attempts": new.max_attempts,
        "fence": 0, "next_attempt_at": new.not_before, "expires_at": new.expires_at,
        "created_by": new.created_by, "requested_by": new.requested_by,
        "idempotency_key": new.idempotency_key, "request_digest": one.digest,
        "retries": new.retries, "nesting": new.nesting, "event_seq": 1,
        "canvas": effects.canvas_of(new.envelope), "envelope": new.envelope,
        "time_limit_s": new.time_limit_s, "soft_time_limit_s": new.soft_time_limit_s,
        "created_at": one.created_at, "updated_at": one.created_at,
    }  # fmt: skip
    if one.reason is not None:
        row |= {
            "status": Status.FAILED, "reason": "rejected", "error_type": effects.REJECTED,
            "error_message": one.reason, "finished_at": one.created_at,
        }  # fmt: skip
    return row


def _job(row: Mapping[str, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__ if name in row})


def _tell_conflict(
    conn: sa.Connection, job_id: str, item: NewJob | Rejection, now: datetime
) -> None:
    """Say in the job's log that another message came under its task id."""
    for job, seq, _ in moves.transition(conn, [job_id], now=now, to={}):
        payload = {"retries": getattr(item, "retries", None), "type": item.type}
        log = events.row(job, seq, "ingest_conflict", payload, job.updated_at, level="warn")
        events.insert(conn, [log])
