"""The tables of the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from broker.ledger.columns import JsonText, StatusText, UtcDateTime
from broker.states import Status, Trigger, check_sql, target

#: SQLite numbers only INTEGER PRIMARY KEY by itself
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    """Make an index partial on both databases."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


class Base(DeclarativeBase):
    """Common ground of the tables: names of constraints, types by annotation."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's own form
        datetime: UtcDateTime,
        Status: StatusText,
        str: sa.Text,
        int: sa.BigInteger,
    }


class JobRow(Base):
    """One job; ``version`` counts its transitions, ``run`` its redrives."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.CheckConstraint(check_sql(), name="status"),
        sa.CheckConstraint(
            f"(status = '{target(Status.QUEUED, Trigger.GRANT)}') = (lease_id IS NOT NULL)",
            name="running_has_lease",
        ),
        sa.UniqueConstraint("created_by", "idempotency_key"),
        sa.Index("ix_jobs_created", "created_at", "id"),
        sa.Index("ix_jobs_status_created", "status", "created_at", "id"),
        sa.Index("ix_jobs_status_seq", "status", "seq"),
        sa.Index("ix_jobs_updated_at", "updated_at"),
        sa.Index("ix_jobs_worker", "claimed_by", "status"),
        sa.Index("ix_jobs_expires_at", "expires_at", **_where(f"status = '{Status.QUEUED}'")),
        sa.Index("ix_jobs_cancel", "cancel_requested_at", **_where(f"status = '{Status.RUNNING}'")),
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    task_id: Mapped[str] = mapped_column(sa.String(255), unique=True)
    queue: Mapped[str] = mapped_column(sa.String(255))
    type: Mapped[str] = mapped_column(sa.String(255))
    seq: Mapped[int] = mapped_column(unique=True)
    run: Mapped[int] = mapped_column(sa.Integer, default=1)
    version: Mapped[int] = mapped_column(default=1)
    status: Mapped[Status] = mapped_column(StatusText)
    reason: Mapped[str | None] = mapped_column(sa.String(64))
    priority: Mapped[int] = mapped_column(sa.Integer, default=0)
    payload: Mapped[Any] = mapped_column(JsonText)
    lane: Mapped[str] = mapped_column(sa.String(16))
    lane_spec: Mapped[str]
    affinity_key: Mapped[str | None] = mapped_column(sa.String(255))
    attempt: Mapped[int] = mapped_column(sa.Integer, default=1)
    max_attempts: Mapped[int] = mapped_column(sa.Integer, default=3)
    fence: Mapped[int] = mapped_column(default=0)
    claimed_by: Mapped[str | None] = mapped_column(sa.String(128))
    lease_id: Mapped[str | None] = mapped_column(sa.String(64))
    lease_seconds: Mapped[int | None] = mapped_column(sa.Integer)
    #: deadline as granted; renewals live in the reservations
    lease_expires_at: Mapped[datetime | None]
    #: until when an untaken grant is held; None when the claim asked for no hold
    held_until: Mapped[datetime | None]
    next_attempt_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    result: Mapped[Any | None] = mapped_column(JsonText)
    result_summary: Mapped[str | None]
    error_type: Mapped[str | None] = mapped_column(sa.String(255))
    error_message: Mapped[str | None]
    traceback: Mapped[str | None]
    #: the lease that ended last, and the digest of the call that ended it
    last_lease_id: Mapped[str | None] = mapped_column(sa.String(64))
    last_digest: Mapped[str | None] = mapped_column(sa.String(64))
    created_by: Mapped[str | None] = mapped_column(sa.String(255))
    requested_by: Mapped[str | None] = mapped_column(sa.String(255))
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    #: digest of the request behind the idempotency key, or of the message's identity
    request_digest: Mapped[str | None] = mapped_column(sa.String(64))
    retries: Mapped[int] = mapped_column(sa.Integer, default=0)
    nesting: Mapped[int] = mapped_column(sa.Integer, default=0)
    event_seq: Mapped[int] = mapped_column(default=0)
    #: what hangs on the task: links, errbacks, chain, chord; None when nothing does
    canvas: Mapped[Any | None] = mapped_column(JsonText)
    #: the raw Celery message: headers, properties, args, kwargs, embed
    envelope: Mapped[Any | None] = mapped_column(JsonText)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: what its last holder left to the next when it gave the job back
    checkpoint: Mapped[Any | None] = mapped_column(JsonText)
    time_limit_s: Mapped[float | None] = mapped_column(sa.Float)
    soft_time_limit_s: Mapped[float | None] = mapped_column(sa.Float)
    #: of the last entry appended to its log; no index knows it, so that an append writes none anew
    logged_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One lease of a job, by its fence."""

    __tablename__ = "attempts"
    __table_args__ = (sa.Index("ix_attempts_claim", "worker_id", "claim_key"),)

    job_id: Mapped[str] = mapped_column(
        sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(sa.Integer)
    run: Mapped[int] = mapped_column(sa.Integer)
    worker_id: Mapped[str] = mapped_column(sa.String(128))
    lease_id: Mapped[str] = mapped_column(sa.String(64))
    lease_seconds: Mapped[int] = mapped_column(sa.Integer)
    claim_key: Mapped[str | None] = mapped_column(sa.String(255))
    claim_digest: Mapped[str | None] = mapped_column(sa.String(64))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(sa.String(32))
    error_message: Mapped[str | None]


class EventRow(Base):
    """One entry of a job's log."""

    __tablename__ = "events"
    __table_args__ = (sa.UniqueConstraint("job_id", "fence", "worker_seq"),)

    job_id: Mapped[str] = mapped_column(
        sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(sa.String(36))
    level: Mapped[str] = mapped_column(sa.String(8))
    message: Mapped[str]
    payload: Mapped[Any | None] = mapped_column(JsonText)
    attempt: Mapped[int] = mapped_column(sa.Integer)
    fence: Mapped[int]
    worker_seq: Mapped[int | None]
    created_at: Mapped[datetime]


class ArtifactRow(Base):
    """One stored file of a job; its bytes lie in the artifact store under their sha256."""

    __tablename__ = "artifacts"
    __table_args__ = (sa.UniqueConstraint("job_id", "fence", "name"),)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(sa.String(255))
    content_type: Mapped[str | None] = mapped_column(sa.String(255))
    size_bytes: Mapped[int]
    digest: Mapped[str] = mapped_column(sa.String(80))
    storage_path: Mapped[str]
    attempt: Mapped[int] = mapped_column(sa.Integer)
    fence: Mapped[int]
    created_at: Mapped[datetime]


class CredentialRow(Base):
    """One token: its id, the sha256 of its secret, and what it allows."""

    __tablename__ = "credentials"
    __table_args__ = (
        sa.CheckConstraint("kind IN ('worker', 'operator', 'producer')", name="kind"),
        sa.Index("ix_credentials_created", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(sa.String(12), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(16))
    secret_sha256: Mapped[str] = mapped_column(sa.String(64))
    worker_id: Mapped[str | None] = mapped_column(sa.String(128))
    description: Mapped[str | None]
    #: contract's fields: types, repositories, capabilities, queues, max_concurrency
    policy: Mapped[Any] = mapped_column(JsonText)
    created_at: Mapped[datetime]
    created_by: Mapped[str | None] = mapped_column(sa.String(255))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    #: the token that took this one's place by a rotation
    rotated_to: Mapped[str | None] = mapped_column(sa.String(12))


class AuditRow(Base):
    """One record of the audit: added, and never changed; text, for what lies here is hashed."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(sa.String(32))
    action: Mapped[str] = mapped_column(sa.String(64))
    actor: Mapped[str] = mapped_column(sa.String(255))
    source: Mapped[str | None] = mapped_column(sa.String(64))
    object: Mapped[str | None] = mapped_column(sa.String(255))
    detail: Mapped[str]
    #: digest of the record before
    previous: Mapped[str] = mapped_column(sa.String(64))
    digest: Mapped[str] = mapped_column(sa.String(64))


class AuditHeadRow(Base):
    """The one row that knows the audit's last record: its lock makes the chain one line."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int]
    digest: Mapped[str] = mapped_column(sa.String(64))


class WorkerRow(Base):
    """One remote worker; its row is the lock under which its claims are counted."""

    __tablename__ = "workers"

    worker_id: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    #: counts grants; written to take the lock
    grants: Mapped[int] = mapped_column(default=0)
    first_seen_at: Mapped[datetime]
    #: what the last hello said: instance, version, types, capabilities, concurrency
    hello: Mapped[Any | None] = mapped_column(JsonText)
    hello_at: Mapped[datetime | None]
    #: counts what it was ever ordered
    orders_seq: Mapped[int] = mapped_column(default=0, server_default=sa.text("0"))
    #: since when it shall claim no more
    draining_at: Mapped[datetime | None]
    #: slots it shall have; None leaves it to its owner
    concurrency: Mapped[int | None] = mapped_column(sa.Integer)
    #: names of the queues from which it shall claim nothing
    paused: Mapped[Any | None] = mapped_column(JsonText)


class OutboxRow(Base):
    """One effect that Celery must be told of, relayed in order per job."""

    __tablename__ = "outbox"
    __table_args__ = (
        sa.Index("ix_outbox_open", "seq", **_where("done_at IS NULL AND parked_at IS NULL")),
        sa.Index("ix_outbox_job", "job_id", "seq"),
    )

    seq: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(sa.String(16))
    data: Mapped[Any] = mapped_column(JsonText)
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]
    locked_by: Mapped[str | None] = mapped_column(sa.String(64))
    locked_until: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(sa.Integer, default=0)
    next_try_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    parked_at: Mapped[datetime | None]


class QueueRow(Base):
    """One queue and the generation of its reservations."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    generation: Mapped[int] = mapped_column(default=1)


class BridgeStateRow(Base):
    """The one row that numbers jobs: its lock makes order of numbers the order of commits."""

    __tablename__ = "bridge_state"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    job_seq: Mapped[int] = mapped_column(default=0)
    last_created_at: Mapped[datetime]
