"""The tables of uploads that come in parts."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from broker.ledger.models import Base


class UploadRow(Base):
    """A file that a lease has announced; ``artifact_id`` says that it is whole."""

    __tablename__ = "uploads"
    __table_args__ = (
        sa.UniqueConstraint("job_id", "fence", "name", "digest"),
        sa.Index("ix_uploads_worker", "worker_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int]
    worker_id: Mapped[str] = mapped_column(sa.String(128))
    name: Mapped[str] = mapped_column(sa.String(255))
    content_type: Mapped[str | None] = mapped_column(sa.String(255))
    digest: Mapped[str] = mapped_column(sa.String(80))
    size_bytes: Mapped[int]
    part_bytes: Mapped[int]
    artifact_id: Mapped[str | None] = mapped_column(sa.String(36))
    created_at: Mapped[datetime]


class PartRow(Base):
    """One part; its bytes lie in the artifact store under the upload, or no more: no digest."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(
        sa.String(36), sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str | None] = mapped_column(sa.String(80))
    size_bytes: Mapped[int]
