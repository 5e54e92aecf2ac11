"""What the ledger forgets, and when; bounded, so that no transaction grows with the past."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from broker.ledger.jobs import jobs
from broker.ledger.models import ArtifactRow, AttemptRow, EventRow, OutboxRow
from broker.ledger.parts import parts, uploads
from broker.states import TERMINAL, Status

artifacts: Final[sa.Table] = ArtifactRow.__table__  # type: ignore[assignment]
attempts: Final[sa.Table] = AttemptRow.__table__  # type: ignore[assignment]
events: Final[sa.Table] = EventRow.__table__  # type: ignore[assignment]
outbox: Final[sa.Table] = OutboxRow.__table__  # type: ignore[assignment]


def forget_settled(conn: sa.Connection, *, before: datetime, limit: int) -> int:
    """Remove effects that were settled before a moment."""
    old = sa.select(outbox.c.seq).where(outbox.c.done_at < before).limit(limit)
    return conn.execute(outbox.delete().where(outbox.c.seq.in_(old))).rowcount


def forget_artifacts(conn: sa.Connection, *, before: datetime, limit: int) -> int:
    """Remove names of files older than a moment; their bytes go once nobody names them."""
    old = sa.select(artifacts.c.id).where(artifacts.c.created_at < before).limit(limit)
    return conn.execute(artifacts.delete().where(artifacts.c.id.in_(old))).rowcount


def forget_jobs(conn: sa.Connection, *, before: datetime, dead_before: datetime, limit: int) -> int:
    """Remove ended jobs with all that hangs on them, once Celery was told everything."""
    kept = [status for status in TERMINAL if status is not Status.DEAD_LETTER]
    untold = (
        sa.select(outbox.c.seq)
        .where(outbox.c.job_id == jobs.c.id, outbox.c.done_at.is_(None))
        .exists()
    )
    query = sa.select(jobs.c.id).where(
        sa.or_(
            sa.and_(jobs.c.status.in_(kept), jobs.c.finished_at < before),
            sa.and_(jobs.c.status == Status.DEAD_LETTER, jobs.c.finished_at < dead_before),
        ),
        ~untold,
    )
    # held from here on: one that is redriven meanwhile is no longer ended, and must not go
    held = query.limit(limit).with_for_update(of=jobs, skip_locked=True)
    ids = list(conn.scalars(held))
    of_job = sa.select(uploads.c.id).where(uploads.c.job_id.in_(ids))
    conn.execute(parts.delete().where(parts.c.upload_id.in_(of_job)))
    for table in (uploads, artifacts, events, attempts, outbox):
        conn.execute(table.delete().where(table.c.job_id.in_(ids)))
    return conn.execute(jobs.delete().where(jobs.c.id.in_(ids))).rowcount


def unnamed(conn: sa.Connection, paths: Sequence[str]) -> list[str]:
    """Pick the stored bytes that no artifact names."""
    query = sa.select(artifacts.c.storage_path).where(artifacts.c.storage_path.in_(paths))
    named = set(conn.scalars(query))
    return [path for path in paths if path not in named]
