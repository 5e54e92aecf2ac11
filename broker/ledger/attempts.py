"""The rows of attempts: one a lease, by its job's fence; all in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.models import AttemptRow
from broker.records import Attempt, Job

attempts: Final[sa.Table] = AttemptRow.__table__  # type: ignore[assignment]

_INSERT: Final = attempts.insert()
_COLUMNS: Final = tuple(attempts.c[field.name] for field in fields(Attempt))


def list_attempts(conn: sa.Connection, job_id: str) -> list[Attempt]:
    """List the leases of a job by fence."""
    query = sa.select(*_COLUMNS).where(attempts.c.job_id == job_id).order_by(attempts.c.fence)
    return [Attempt(**row._mapping) for row in conn.execute(query)]  # noqa: SLF001


def open_attempts(conn: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Record leases that were granted."""
    conn.execute(_INSERT, rows[0] if len(rows) == 1 else list(rows))


_END_ATTEMPT: Final = (
    attempts.update()
    .where(attempts.c.job_id == sa.bindparam("job"), attempts.c.fence == sa.bindparam("at_fence"))
    .values(
        ended_at=sa.bindparam("now_", type_=attempts.c.ended_at.type),
        outcome=sa.bindparam("how"),
        error_message=sa.bindparam("why"),
    )
    .returning(attempts.c.started_at)
)


def end_attempt(
    conn: sa.Connection, job: Job, *, outcome: str, now: datetime, error: str | None = None
) -> datetime | None:
    """Record how the newest lease of a job ended; returns when it had started."""
    ended = {"job": job.id, "at_fence": job.fence, "now_": now, "how": outcome, "why": error}
    started: datetime | None = conn.scalar(_END_ATTEMPT, ended)
    return started


class Claimed(NamedTuple):
    """One lease that a claim key was answered with."""

    job_id: str
    lease_id: str
    fence: int
    attempt: int
    #: of the request that came with the key
    digest: str | None


_CLAIMED: Final = sa.select(
    attempts.c.job_id, attempts.c.lease_id, attempts.c.fence, attempts.c.attempt,
    attempts.c.claim_digest, attempts.c.started_at, attempts.c.lease_seconds,
).where(
    attempts.c.worker_id == sa.bindparam("worker"), attempts.c.claim_key == sa.bindparam("key")
)  # fmt: skip


def claimed_under(
    conn: sa.Connection, worker_id: str, claim_key: str, now: datetime
) -> list[Claimed]:
    """Name what a claim key was answered within its lease."""
    asked = {"worker": worker_id, "key": claim_key}
    return [
        Claimed(row.job_id, row.lease_id, row.fence, row.attempt, row.claim_digest)
        for row in conn.execute(_CLAIMED, asked)
        if row.started_at + timedelta(seconds=row.lease_seconds) > now
    ]
