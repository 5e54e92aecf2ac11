"""Uploads in parts, in SQL: what a lease has announced, and which parts of it are here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from broker.errors import ArtifactConflict, ArtifactNotFound
from broker.ledger import artifacts
from broker.ledger.jobs import jobs
from broker.ledger.upload_rows import PartRow, UploadRow
from broker.records import Artifact, Job
from broker.states import Status

uploads: Final[sa.Table] = UploadRow.__table__  # type: ignore[assignment]
parts: Final[sa.Table] = PartRow.__table__  # type: ignore[assignment]

#: what all parts of an upload weigh but the last
PART_BYTES: Final = 8 * 1024 * 1024
#: the largest files have larger parts, not more of them
PARTS_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that is here."""

    number: int
    size_bytes: int
    #: ``sha256:<hex>``
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that comes in parts; ``artifact`` is what became of it, once it is whole."""

    id: str
    job_id: str
    name: str
    content_type: str | None
    size_bytes: int
    digest: str
    part_bytes: int
    attempt: int
    fence: int
    created_at: datetime
    parts: tuple[Part, ...]
    artifact: Artifact | None

    @property
    def count(self) -> int:
        """How many parts it has."""
        return -(-self.size_bytes // self.part_bytes)

    def size_of(self, number: int) -> int | None:
        """Return what a part weighs; None when the upload has no such part."""
        if not 1 <= number <= self.count:
            return None
        return min(self.part_bytes, self.size_bytes - (number - 1) * self.part_bytes)

    def missing(self) -> list[int]:
        """List the parts that are not here."""
        here = {part.number for part in self.parts}
        return [number for number in range(1, self.count + 1) if number not in here]


def begin(
    conn: sa.Connection,
    job: Job,
    *,
    name: str,
    content_type: str | None,
    digest: str,
    size_bytes: int,
    artifact_id: str | None,
    now: datetime,
) -> Upload:
    """Announce a file of the job's lease; the caller holds the job's row locked."""
    id_ = str(uuid4())
    conn.execute(
        uploads.insert().values(
            id=id_, job_id=job.id, fence=job.fence, worker_id=job.claimed_by, name=name,
            content_type=content_type, digest=digest, size_bytes=size_bytes,
            part_bytes=max(PART_BYTES, -(-size_bytes // PARTS_MAX)), artifact_id=artifact_id,
            created_at=now,
        )
    )  # fmt: skip
    return get(conn, job, id_)


def find(conn: sa.Connection, job: Job, *, name: str, digest: str) -> Upload | None:
    """Return what this lease announced under that name with these bytes."""
    query = sa.select(uploads.c.id).where(
        uploads.c.job_id == job.id, uploads.c.fence == job.fence,
        uploads.c.name == name, uploads.c.digest == digest,
    )  # fmt: skip
    found = conn.scalar(query)
    return None if found is None else get(conn, job, found)


def get(conn: sa.Connection, job: Job, upload_id: str) -> Upload:
    """Return an upload of the job's lease.

    Raises:
        ArtifactNotFound: this lease has no such upload.
    """
    mine = (uploads.c.job_id == job.id, uploads.c.fence == job.fence)
    row = conn.execute(sa.select(uploads).where(uploads.c.id == upload_id, *mine)).one_or_none()
    if row is None:
        raise ArtifactNotFound("This lease has no such upload")
    columns = [parts.c[field.name] for field in fields(Part)]
    held = (parts.c.upload_id == upload_id, parts.c.digest.is_not(None))
    here = conn.execute(sa.select(*columns).where(*held).order_by(parts.c.number))
    artifact = None if row.artifact_id is None else artifacts.get(conn, row.artifact_id)
    return Upload(
        id=row.id, job_id=row.job_id, name=row.name, content_type=row.content_type,
        size_bytes=row.size_bytes, digest=row.digest, part_bytes=row.part_bytes,
        attempt=job.attempt, fence=row.fence, created_at=row.created_at,
        parts=tuple(Part(**one._mapping) for one in here),  # noqa: SLF001
        artifact=artifact,
    )  # fmt: skip


def add_part(conn: sa.Connection, upload: Upload, part: Part) -> Part:
    """Note that a part is here; again, the same; the caller holds the job's row locked.

    Raises:
        ArtifactConflict: that part is here, with other bytes.
    """
    for known in upload.parts:
        if known.number == part.number:
            if known.digest != part.digest:
                raise ArtifactConflict("The upload has other bytes as that part")
            return known
    values: dict[str, Any] = {field.name: getattr(part, field.name) for field in fields(Part)}
    lost = (parts.c.upload_id == upload.id, parts.c.number == part.number)
    if not conn.execute(parts.update().where(*lost).values(**values)).rowcount:
        conn.execute(parts.insert().values(upload_id=upload.id, **values))
    return part


def forget_parts(conn: sa.Connection, upload_id: str) -> None:
    """Let the parts of an upload be sent anew."""
    conn.execute(parts.update().where(parts.c.upload_id == upload_id).values(digest=None))


def settle(conn: sa.Connection, upload_id: str, artifact: Artifact) -> None:
    """Say what became of an upload."""
    row = uploads.update().where(uploads.c.id == upload_id)
    conn.execute(row.values(artifact_id=artifact.id))


def expire(conn: sa.Connection, *, before: datetime, limit: int) -> list[str]:
    """Forget uploads begun before a moment, or whose lease is over; returns which."""
    held = sa.and_(jobs.c.status == Status.RUNNING, jobs.c.fence == uploads.c.fence)
    query = (
        sa.select(uploads.c.id)
        .select_from(uploads.join(jobs, jobs.c.id == uploads.c.job_id))
        .where(sa.or_(uploads.c.created_at < before, ~held))
        .limit(limit)
    )
    ids = list(conn.scalars(query))
    conn.execute(parts.delete().where(parts.c.upload_id.in_(ids)))
    conn.execute(uploads.delete().where(uploads.c.id.in_(ids)))
    return ids


def known(conn: sa.Connection, ids: Iterable[str]) -> set[str]:
    """Pick the uploads that the ledger knows."""
    return set(conn.scalars(sa.select(uploads.c.id).where(uploads.c.id.in_(list(ids)))))
