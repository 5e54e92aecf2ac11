"""Who may upload to a job, and how much more: the only one to know quotas of files."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from broker.errors import JobNotFound, NotAuthorized, OwnershipMismatch, QuotaExceeded
from broker.ledger import holders, jobs
from broker.ledger.artifacts import artifacts
from broker.ledger.models import AttemptRow
from broker.ledger.upload_rows import UploadRow
from broker.ledger.workers import workers
from broker.records import Holder, Job
from broker.settings import QueueSettings

attempts: Final[sa.Table] = AttemptRow.__table__  # type: ignore[assignment]
announced: Final[sa.Table] = UploadRow.__table__  # type: ignore[assignment]
#: over which a worker's uploads are summed up
DAY: Final = timedelta(days=1)


def may_upload(conn: sa.Connection, job_id: str, holder: Holder, *, lock: bool = False) -> Job:
    """Return a job to whoever may upload to it; with its worker's and its own row locked.

    Raises:
        NotAuthorized: another worker holds it; otherwise as every call of a holder.
    """
    if lock:
        # The worker before the job, as claims lock them: uploads to two jobs race for one quota.
        conn.execute(
            sa.select(workers.c.worker_id)
            .where(workers.c.worker_id == holder.worker_id)
            .with_for_update()
        )
    job = jobs.get(conn, job_id, lock=lock)
    if job is None:
        raise JobNotFound
    try:
        holders.check_holder(job, holder)
    except OwnershipMismatch as error:
        if job.claimed_by == holder.worker_id:
            raise
        raise NotAuthorized("This worker does not hold the job") from error
    return job


def stored(conn: sa.Connection, job: Job, name: str | None) -> bool:
    """Tell whether this lease has a file of that name: its repeat needs no room."""
    known = (artifacts.c.job_id == job.id, artifacts.c.fence == job.fence)
    query = sa.select(artifacts.c.id).where(*known, artifacts.c.name == name)
    return conn.scalar(query) is not None


def room(
    conn: sa.Connection,
    job: Job,
    holder: Holder,
    *,
    settings: QueueSettings,
    now: datetime,
    besides: str | None = None,
) -> int:
    """Return how many bytes more the job and its worker may store.

    Uploads that are announced have taken their room, all but the one named in ``besides``.

    Raises:
        QuotaExceeded: none, or no file more.
    """
    size = sa.func.coalesce(sa.func.sum(artifacts.c.size_bytes), 0)
    files, of_job = conn.execute(
        sa.select(sa.func.count(), size).where(artifacts.c.job_id == job.id)
    ).one()
    open_ = (announced.c.artifact_id.is_(None), announced.c.id != (besides or ""))
    coming = sa.func.coalesce(sa.func.sum(announced.c.size_bytes), 0)
    files_coming, to_job = conn.execute(
        sa.select(sa.func.count(), coming).where(announced.c.job_id == job.id, *open_)
    ).one()
    if files + files_coming >= settings.artifacts_per_job:
        raise QuotaExceeded(f"The job has {settings.artifacts_per_job} files, and gets no more")
    lease = sa.and_(attempts.c.job_id == artifacts.c.job_id, attempts.c.fence == artifacts.c.fence)
    of_worker = conn.scalar(
        sa.select(size)
        .select_from(artifacts.join(attempts, lease))
        .where(attempts.c.worker_id == holder.worker_id, artifacts.c.created_at > now - DAY)
    )
    by_worker = conn.scalar(
        sa.select(coming).where(
            announced.c.worker_id == holder.worker_id, announced.c.created_at > now - DAY, *open_
        )
    )
    left = min(
        settings.artifact_bytes_per_job - int(of_job) - int(to_job),
        settings.artifact_bytes_per_worker - int(of_worker or 0) - int(by_worker or 0),
    )
    if left <= 0:
        raise QuotaExceeded
    return left
