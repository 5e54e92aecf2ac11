"""A job's log in SQL: entries numbered under the job's row lock, so that a cursor misses none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from broker.errors import LogFull
from broker.ledger.columns import TICK
from broker.ledger.jobs import jobs, not_before
from broker.ledger.models import EventRow
from broker.records import Event, Job, NewEvent

events: Final[sa.Table] = EventRow.__table__  # type: ignore[assignment]
_COLUMNS: Final = tuple(events.c[field.name] for field in fields(Event))
_INSERT: Final = events.insert()


def row(
    job: Job,
    seq: int,
    message: str,
    payload: Mapping[str, Any] | None,
    now: datetime,
    *,
    level: str = "info",
    worker_seq: int | None = None,
) -> dict[str, Any]:
    """Return one entry, ready to insert."""
    return {
        "id": str(uuid4()), "job_id": job.id, "seq": seq, "level": level, "message": message,
        "payload": payload, "attempt": job.attempt, "fence": job.fence, "worker_seq": worker_seq,
        "created_at": now,
    }  # fmt: skip


def completed(result_summary: str | None) -> dict[str, Any]:
    """Return what a job's log says of its good end."""
    return {"resultSummary": result_summary}


def insert(conn: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert entries whose numbers the caller took under the row lock."""
    if rows:
        # one row alone spares the driver its way for many
        conn.execute(_INSERT, rows[0] if len(rows) == 1 else list(rows))


def append(
    conn: sa.Connection,
    job: Job,
    new: Sequence[NewEvent],
    now: datetime,
    *,
    most: int | None = None,
) -> list[Event]:
    """Append a holder's entries to a job whose row the caller holds locked.

    Each is younger than the one before, whoever wrote that by whatever clock: who reads beyond a
    moment misses none. So the job's row keeps the moment of the last. Those whose ``worker_seq``
    this lease has sent before add nothing; the answer names all of them, old and new, as they
    stand in the log. Whoever appends has taken its grant up.

    Raises:
        LogFull: the log would have more than ``most`` entries; the caller takes all of it back.
    """
    sent = [event.worker_seq for event in new if event.worker_seq is not None]
    known: dict[int | None, Event] = {}
    if sent:
        query = sa.select(*_COLUMNS).where(
            events.c.job_id == job.id, events.c.fence == job.fence, events.c.worker_seq.in_(sent)
        )
        known = {event.worker_seq: event for event in _events(conn, query)}
    fresh: list[NewEvent] = []
    for event in new:
        if event.worker_seq is None or event.worker_seq not in known | _by_seq(fresh):
            fresh.append(event)
    moments = [not_before(job, now) + TICK * at for at in range(len(fresh))]
    last = int(
        conn.execute(
            jobs.update()
            .where(jobs.c.id == job.id)
            .values(
                event_seq=jobs.c.event_seq + len(fresh), held_until=None,
                logged_at=[job.logged_at, *moments][-1],
            )
            .returning(jobs.c.event_seq)
        ).scalar_one()
    )  # fmt: skip
    if most is not None and fresh and last > most:
        raise LogFull
    rows = [
        row(
            job, last - len(fresh) + at, event.message, event.payload, moment,
            level=event.level, worker_seq=event.worker_seq,
        )
        for at, (event, moment) in enumerate(zip(fresh, moments, strict=True), start=1)
    ]  # fmt: skip
    insert(conn, rows)
    made = [Event(**values) for values in rows]
    known |= {event.worker_seq: event for event in made if event.worker_seq is not None}
    unnumbered = iter([event for event in made if event.worker_seq is None])
    return [
        next(unnumbered) if event.worker_seq is None else known[event.worker_seq] for event in new
    ]


def _by_seq(new: Sequence[NewEvent]) -> dict[int | None, None]:
    return {event.worker_seq: None for event in new if event.worker_seq is not None}


def read(
    conn: sa.Connection,
    job_id: str,
    *,
    after_seq: int | None,
    after: datetime | None,
    limit: int,
) -> list[Event]:
    """Read a job's log, oldest first, beyond a cursor or a moment."""
    query = sa.select(*_COLUMNS).where(events.c.job_id == job_id)
    if after_seq is not None:
        query = query.where(events.c.seq > after_seq)
    if after is not None:
        query = query.where(events.c.created_at > after)
    return _events(conn, query.order_by(events.c.seq).limit(limit))


def _events(conn: sa.Connection, query: sa.Select[Any]) -> list[Event]:
    return [Event(**found._mapping) for found in conn.execute(query)]  # noqa: SLF001
