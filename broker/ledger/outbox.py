"""The outbox in SQL: what Celery must be told, taken in order per job, marked one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.effects import Row
from broker.ledger.jobs import CHUNK, COLUMNS, jobs, to_job
from broker.ledger.models import OutboxRow
from broker.records import Effect, Job

outbox: Final[sa.Table] = OutboxRow.__table__  # type: ignore[assignment]
_COLUMNS: Final = tuple(outbox.c[field.name] for field in fields(Effect))

#: tries before a row is parked
TRIES_MAX: Final = 20
RETRY_CAP_S: Final = 60
#: any number, the same in every process: PostgreSQL's name for "someone is taking effects"
_TAKING: Final = 0x6472626F
#: nobody asks for the number of a row, and an edge may not read it
_INSERT: Final = outbox.insert().inline()


def insert(conn: sa.Connection, rows: Sequence[tuple[str, Row]], now: datetime) -> None:
    """Write effects, each as (job id, row), in the transaction of the transition they tell of."""
    if rows:
        conn.execute(
            _INSERT,
            [
                {"job_id": job_id, "kind": kind, "data": data, "created_at": now, "tries": 0}
                for job_id, (kind, data) in rows
            ],
        )


def take(
    conn: sa.Connection, *, owner: str, now: datetime, limit: int = 100, lock_s: float = 30.0
) -> list[Effect]:
    """Lock the next effects for one relay, in order; none that waits for an earlier one.

    An effect waits while an earlier one of its job is undone and not in the same take: locked by
    another relay, or due for a later try. A parked one holds nobody up. A lock that ran out may be
    taken again, so an effect may be relayed twice.
    """
    if conn.dialect.name == "postgresql":
        # two takes at once would not see each other's locks, and part the effects of one job
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_TAKING)))
    open_ = sa.and_(outbox.c.done_at.is_(None), outbox.c.parked_at.is_(None))
    free = sa.and_(
        sa.or_(outbox.c.locked_until.is_(None), outbox.c.locked_until <= now),
        sa.or_(outbox.c.next_try_at.is_(None), outbox.c.next_try_at <= now),
    )
    earlier = outbox.alias("earlier")
    blocked = (
        sa.select(earlier.c.seq)
        .where(
            earlier.c.job_id == outbox.c.job_id,
            earlier.c.seq < outbox.c.seq,
            earlier.c.done_at.is_(None),
            earlier.c.parked_at.is_(None),
            sa.or_(earlier.c.locked_until > now, earlier.c.next_try_at > now),
        )
        .exists()
    )
    query = sa.select(outbox.c.seq).where(open_, free, ~blocked).order_by(outbox.c.seq).limit(limit)
    seqs = list(conn.scalars(query))
    if not seqs:
        return []
    lock = (
        outbox.update()
        .where(outbox.c.seq.in_(seqs), open_, free)
        .values(locked_by=owner, locked_until=now + timedelta(seconds=lock_s))
        .returning(*_COLUMNS)
    )
    taken = [Effect(**row._mapping) for row in conn.execute(lock)]  # noqa: SLF001
    return sorted(taken, key=lambda effect: effect.seq)


def done(conn: sa.Connection, seqs: Sequence[int], *, now: datetime) -> None:
    """Mark effects as done; a repeat changes nothing."""
    for at in range(0, len(seqs), CHUNK):
        conn.execute(
            outbox.update()
            .where(outbox.c.seq.in_(seqs[at : at + CHUNK]), outbox.c.done_at.is_(None))
            .values(done_at=now, locked_by=None, locked_until=None, last_error=None)
        )


def free(conn: sa.Connection, seqs: Sequence[int]) -> None:
    """Give taken effects back untried."""
    for at in range(0, len(seqs), CHUNK):
        conn.execute(
            outbox.update()
            .where(outbox.c.seq.in_(seqs[at : at + CHUNK]), outbox.c.done_at.is_(None))
            .values(locked_by=None, locked_until=None)
        )


def postpone(conn: sa.Connection, seqs: Sequence[int], *, until: datetime) -> None:
    """Give taken effects back because their store is away; that counts for no tries."""
    for at in range(0, len(seqs), CHUNK):
        conn.execute(
            outbox.update()
            .where(outbox.c.seq.in_(seqs[at : at + CHUNK]), outbox.c.done_at.is_(None))
            .values(locked_by=None, locked_until=None, next_try_at=until)
        )


def retry(conn: sa.Connection, seq: int, *, error: str, now: datetime) -> bool:
    """Put an effect back for a later try, 1 s doubling up to 60 s; False once it is parked."""
    tries = conn.scalar(sa.select(outbox.c.tries).where(outbox.c.seq == seq)) or 0
    values: dict[str, Any] = {
        "tries": tries + 1, "last_error": error[:1000], "locked_by": None, "locked_until": None,
    }  # fmt: skip
    parked = tries + 1 >= TRIES_MAX
    if parked:
        values["parked_at"] = now
    else:
        values["next_try_at"] = now + timedelta(seconds=min(RETRY_CAP_S, 2**tries))
    conn.execute(outbox.update().where(outbox.c.seq == seq).values(**values))
    return not parked


def context(
    conn: sa.Connection, job_ids: Sequence[str]
) -> dict[str, tuple[Job, dict[str, Any] | None]]:
    """Read the jobs that effects speak of, each with its Celery message."""
    found: dict[str, tuple[Job, dict[str, Any] | None]] = {}
    for at in range(0, len(job_ids), CHUNK):
        part = job_ids[at : at + CHUNK]
        query = sa.select(*COLUMNS, jobs.c.envelope).where(jobs.c.id.in_(part))
        found |= {row.id: (to_job(row), row.envelope) for row in conn.execute(query)}
    return found


def oldest(conn: sa.Connection) -> datetime | None:
    """Tell since when the oldest undone effect waits."""
    query = sa.select(sa.func.min(outbox.c.created_at)).where(
        outbox.c.done_at.is_(None), outbox.c.parked_at.is_(None)
    )
    moment: datetime | None = conn.scalar(query)
    return moment


def waiting(conn: sa.Connection) -> int:
    """Count the undone effects."""
    open_ = (outbox.c.done_at.is_(None), outbox.c.parked_at.is_(None))
    query = sa.select(sa.func.count()).select_from(outbox).where(*open_)
    return int(conn.scalar(query) or 0)


class Parked(NamedTuple):
    """Effects that were given up, and what became of the last of them."""

    rows: int
    kind: str | None = None
    job_id: str | None = None
    error: str | None = None


def parked(conn: sa.Connection) -> Parked:
    """Tell of the effects that no relay tries any more."""
    given_up = outbox.c.parked_at.is_not(None)
    rows = conn.scalar(sa.select(sa.func.count()).select_from(outbox).where(given_up)) or 0
    last = conn.execute(
        sa.select(outbox.c.kind, outbox.c.job_id, outbox.c.last_error)
        .where(given_up)
        .order_by(outbox.c.parked_at.desc())
        .limit(1)
    ).first()
    return Parked(0) if last is None else Parked(rows, last.kind, last.job_id, last.last_error)
