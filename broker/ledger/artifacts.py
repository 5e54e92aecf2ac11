"""Artifacts in SQL: which stored bytes are which file of which lease of a job."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from broker.errors import ArtifactConflict
from broker.ledger.models import ArtifactRow
from broker.records import Artifact, Job, StoredFile

artifacts: Final[sa.Table] = ArtifactRow.__table__  # type: ignore[assignment]
_COLUMNS: Final = tuple(artifacts.c[field.name] for field in fields(Artifact))


def add(
    conn: sa.Connection,
    job: Job,
    *,
    name: str,
    content_type: str | None,
    file: StoredFile,
    now: datetime,
) -> tuple[Artifact, bool]:
    """Name stored bytes as a file of the job's lease; False when that was done before.

    The caller holds the job's row locked.

    Raises:
        ArtifactConflict: this lease has other bytes under that name.
    """
    found = find(conn, job, name)
    if found is not None:
        if found.digest != file.digest:
            raise ArtifactConflict
        return found, False
    artifact = Artifact(
        id=str(uuid4()), job_id=job.id, name=name, content_type=content_type,
        size_bytes=file.size_bytes, digest=file.digest, storage_path=file.storage_path,
        attempt=job.attempt, fence=job.fence, created_at=now,
    )  # fmt: skip
    values = {column.name: getattr(artifact, column.name) for column in _COLUMNS}
    conn.execute(artifacts.insert().values(**values))
    return artifact, True


def find(conn: sa.Connection, job: Job, name: str) -> Artifact | None:
    """Return the file that the job's lease has under that name."""
    same = (artifacts.c.job_id == job.id, artifacts.c.fence == job.fence, artifacts.c.name == name)
    found = _read(conn, sa.select(*_COLUMNS).where(*same))
    return found[0] if found else None


def listing(conn: sa.Connection, job_id: str, *, limit: int) -> list[Artifact]:
    """List a job's files, oldest first."""
    query = sa.select(*_COLUMNS).where(artifacts.c.job_id == job_id)
    return _read(conn, query.order_by(artifacts.c.created_at, artifacts.c.id).limit(limit))


def get(conn: sa.Connection, artifact_id: str) -> Artifact | None:
    """Read one artifact."""
    found = _read(conn, sa.select(*_COLUMNS).where(artifacts.c.id == artifact_id))
    return found[0] if found else None


def _read(conn: sa.Connection, query: sa.Select[Any]) -> list[Artifact]:
    return [Artifact(**row._mapping) for row in conn.execute(query)]  # noqa: SLF001
