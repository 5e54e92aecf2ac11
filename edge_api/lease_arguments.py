"""What workers send to claim jobs, keep their leases and end them; see ``arguments``."""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma
from marshmallow import fields, validate

from broker.effects import CELERY_STATES
from edge_api.arguments import KIB, WAIT_MAX_S, Args, HolderArgs, WorkerArgs
from edge_api.fields import LEASE_ID, Flag, Int, Matches, Prose, Seconds, Word, Words, json_size

LEASE_MAX_S: Final = 3600
CHECKPOINT_MAX: Final = 64 * KIB
META_MAX: Final = 4 * KIB


class ClaimNextArgs(Args):
    """What a worker would take next; such a claim never waits."""

    lease_seconds = Int(required=True, validate=validate.Range(1, LEASE_MAX_S))
    allowed_types = Words()
    worker_capabilities = Words()
    max_jobs = Int(load_default=1, validate=validate.Range(1, 100))
    instance_id = Word(longest=128, allow_none=True, load_default=None)


class ClaimArgs(WorkerArgs, ClaimNextArgs):
    """What a worker would take."""

    wait_seconds = Seconds(load_default=0.0, validate=validate.Range(0, WAIT_MAX_S))


class ClaimHeaders(Args):
    """The key under which a repeated claim is answered alike."""

    idempotency_key = Word(data_key="Idempotency-Key", load_default=None)


class ProgressArgs(Args):
    """How far the work is, by its holder's word."""

    percent = Seconds(allow_none=True, load_default=None, validate=validate.Range(0, 100))
    message = fields.String(allow_none=True, load_default=None, validate=validate.Length(max=1000))
    state = fields.String(
        allow_none=True,
        load_default=None,
        validate=[
            Matches(r"[A-Z][A-Z0-9_]{0,63}", "Not the name of a state."),
            validate.NoneOf(sorted(CELERY_STATES), error="Is one of Celery's own states."),
        ],
        metadata={"description": "for Celery; PROGRESS unless named"},
    )
    meta = fields.Dict(
        keys=fields.String(),
        allow_none=True,
        load_default=None,
        metadata={"description": "for Celery, beside percent and message"},
    )

    @ma.validates("meta")
    def is_small(self, value: Any, **_kwargs: Any) -> None:
        """Refuse what is too large to be written again and again."""
        if json_size(value) > META_MAX:
            raise ma.ValidationError(f"Larger than {META_MAX} bytes.")


class HeartbeatArgs(HolderArgs):
    """How long the lease shall last from now, and how far the work is."""

    lease_seconds = Int(required=True, validate=validate.Range(1, LEASE_MAX_S))
    progress = fields.Nested(ProgressArgs, allow_none=True, load_default=None)


class CompleteArgs(HolderArgs):
    """What came out, and what the worker would take next."""

    body_holds = "result_max_bytes"

    result = fields.Raw(allow_none=True, load_default=None)
    result_summary = fields.String(allow_none=True, load_default=None)
    claim_next = fields.Nested(ClaimNextArgs, allow_none=True, load_default=None)


class CompletionArgs(Args):
    """What came out of one of several jobs."""

    job_id = fields.String(required=True, validate=validate.Length(max=64))
    lease_id = fields.String(allow_none=True, load_default=None, validate=LEASE_ID)
    result = fields.Raw(allow_none=True, load_default=None)
    result_summary = fields.String(allow_none=True, load_default=None)


class CompleteManyArgs(WorkerArgs):
    """What came out of several jobs, and what the worker would take next."""

    body_max = 1024 * KIB
    body_holds = "result_max_bytes"

    items = fields.List(
        fields.Nested(CompletionArgs), required=True, validate=validate.Length(min=1, max=100)
    )
    claim_next = fields.Nested(ClaimNextArgs, allow_none=True, load_default=None)

    @ma.validates_schema
    def each_once(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Refuse two ends for one job."""
        ids = [one["job_id"] for one in data["items"]]
        if len(set(ids)) < len(ids):
            raise ma.ValidationError("Names a job twice.", "items")


class FailArgs(HolderArgs):
    """What went wrong, and whether another try may help."""

    error_message = Prose(required=True)
    retryable = Flag(load_default=False)
    error_type = Word(allow_none=True, load_default=None)
    traceback = fields.String(
        allow_none=True, load_default=None, validate=validate.Length(max=16 * KIB)
    )
    retry_after_seconds = Seconds(
        allow_none=True, load_default=None, validate=validate.Range(0, 86_400)
    )


class ReleaseArgs(HolderArgs):
    """Why the job is given back, and what the next holder shall know."""

    reason = fields.String(allow_none=True, load_default=None, validate=validate.Length(max=1000))
    checkpoint = fields.Raw(allow_none=True, load_default=None)

    @ma.validates("checkpoint")
    def is_small(self, value: Any, **_kwargs: Any) -> None:
        """Refuse what is too large to be handed on."""
        if json_size(value) > CHECKPOINT_MAX:
            raise ma.ValidationError(f"Larger than {CHECKPOINT_MAX} bytes.")


class CancelAckArgs(HolderArgs):
    """What the worker stopped."""

    message = fields.String(allow_none=True, load_default=None, validate=validate.Length(max=1000))
