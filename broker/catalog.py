"""What anyone may read of jobs: one, a page of them, their log, files and attempts."""

from __future__ import annotations

from datetime import UTC, datetime

from broker.errors import (
    ArtifactJobMismatch,
    ArtifactNotFound,
    InvalidPayload,
    JobNotFound,
)
from broker.ledger import artifacts, attempts, events, intake, jobs
from broker.ledger.engine import Ledger
from broker.records import Artifact, Attempt, Event, Job
from broker.states import Status


class Catalog:
    """Reads the ledger; writes nothing."""

    def __init__(self, ledger: Ledger) -> None:
        """Read this ledger."""
        self._ledger = ledger

    def get(self, job_id: str) -> Job:
        """Read a job."""
        with self._ledger.read() as conn:
            job = jobs.get(conn, job_id)
        if job is None:
            raise JobNotFound
        return job

    def find(self, task_id: str) -> Job | None:
        """Read the job of a Celery task, if there is one."""
        with self._ledger.read() as conn:
            return jobs.get(conn, intake.job_id_of(task_id))

    def page(
        self,
        *,
        status: Status | None = None,
        type: str | None = None,  # noqa: A002
        queue: str | None = None,
        worker: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """List jobs, newest first, with a cursor for the page after when there may be one."""
        with self._ledger.read() as conn:
            found = jobs.listing(
                conn, status=status, type=type, queue=queue, worker=worker,
                before=_read_cursor(cursor), limit=limit,
            )  # fmt: skip
        more = len(found) == limit and found
        return found, f"{found[-1].created_at.isoformat()}~{found[-1].id}" if more else None

    def attempts(self, job_id: str) -> list[Attempt]:
        """List a job's leases, oldest first."""
        self.get(job_id)
        with self._ledger.read() as conn:
            return attempts.list_attempts(conn, job_id)

    def events(
        self,
        job_id: str,
        *,
        after_seq: int | None = None,
        after: datetime | None = None,
        limit: int = 200,
    ) -> list[Event]:
        """Read a job's log beyond a cursor, oldest first."""
        self.get(job_id)
        with self._ledger.read() as conn:
            return events.read(conn, job_id, after_seq=after_seq, after=after, limit=limit)

    def artifacts(self, job_id: str, *, limit: int = 200) -> list[Artifact]:
        """List a job's artifacts, oldest first."""
        self.get(job_id)
        with self._ledger.read() as conn:
            return artifacts.listing(conn, job_id, limit=limit)

    def artifact(self, job_id: str, artifact_id: str) -> Artifact:
        """Read one artifact of a job."""
        self.get(job_id)
        with self._ledger.read() as conn:
            found = artifacts.get(conn, artifact_id)
        if found is None:
            raise ArtifactNotFound
        if found.job_id != job_id:
            raise ArtifactJobMismatch
        return found


def _read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    moment, _, job_id = cursor.partition("~")
    try:
        at = datetime.fromisoformat(moment)
        # the first and the last day lie beyond all days in UTC
        zoned = None if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        zoned = None
    if zoned is None or not job_id:
        raise InvalidPayload("cursor is not one that a listing gave")
    return zoned, job_id
