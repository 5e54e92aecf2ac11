"""What clients get: camelCase; each key of an answer is always there, ``null`` when unset."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from broker.redrive_shapes import RedriveOutcome
from broker.states import Status
from edge_api.arguments import LEVELS
from edge_api.fields import Moment, camel


class Answer(ma.Schema):
    """An answer; a newer edge may say more."""

    class Meta:
        """Promise nothing about keys to come."""

        unknown = ma.EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Name the field as the wire does, and promise it."""
        field_obj.data_key = field_obj.data_key or camel(field_name)
        field_obj.required = True


class ArtifactsPath(fields.String):
    """Where the artifacts of a job are listed, from its id."""

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        return f"jobs/{value}/artifacts"


class ProgressSchema(Answer):
    """How far a job is."""

    percent = fields.Float(allow_none=True)
    message = fields.String(allow_none=True)
    state = fields.String(allow_none=True)
    meta = fields.Dict(keys=fields.String(), allow_none=True)


class JobSchema(Answer):
    """A job."""

    id = fields.UUID()
    type = fields.String()
    status = fields.String(validate=validate.OneOf([str(status) for status in Status]))
    priority = fields.Integer()
    payload = fields.Dict()
    created_by_user_id = fields.String(attribute="created_by", allow_none=True)
    requested_by_user_id = fields.String(attribute="requested_by", allow_none=True)
    affinity_key = fields.String(allow_none=True)
    claimed_by = fields.String(allow_none=True)
    lease_expires_at = Moment(allow_none=True)
    next_attempt_at = Moment(allow_none=True)
    attempt = fields.Integer()
    max_attempts = fields.Integer()
    result_summary = fields.String(allow_none=True)
    error_message = fields.String(allow_none=True)
    artifacts_path = ArtifactsPath(
        attribute="id", dump_only=True, metadata={"description": "below the prefix"}
    )
    started_at = Moment(allow_none=True)
    finished_at = Moment(allow_none=True)
    created_at = Moment()
    updated_at = Moment()
    cancel_requested_at = Moment(allow_none=True)
    cancel_reason = fields.String(allow_none=True)
    queue = fields.String()
    lease_id = fields.String(allow_none=True, metadata={"description": "for its holder alone"})
    fence = fields.Integer()
    result = fields.Raw(allow_none=True)
    error_type = fields.String(allow_none=True)
    checkpoint = fields.Raw(
        allow_none=True,
        metadata={"description": "what the last holder left; for the next holder, at its claim"},
    )
    time_limit_seconds = fields.Float(
        attribute="time_limit_s",
        allow_none=True,
        metadata={"description": "the task's own, counted from its start at the worker"},
    )
    soft_time_limit_seconds = fields.Float(attribute="soft_time_limit_s", allow_none=True)
    progress = fields.Nested(
        ProgressSchema, allow_none=True, metadata={"description": "by its holder's last heartbeat"}
    )


class JobPageSchema(Answer):
    """A page of jobs, newest first."""

    items = fields.List(fields.Nested(JobSchema))
    next_cursor = fields.String(allow_none=True)


class ClaimSchema(Answer):
    """What a claim was granted; nothing is no error."""

    job = fields.Nested(JobSchema, allow_none=True)
    jobs = fields.List(fields.Nested(JobSchema))
    drain = fields.Boolean(metadata={"description": "nothing is granted before it resumes"})


class CompletedSchema(JobSchema):
    """The job, and what the worker was granted next."""

    next = fields.Nested(
        ClaimSchema,
        allow_none=True,
        metadata={"description": "null: not asked for, or the claim could not be tried"},
    )

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """Look up the next claim beside the job and all else in it."""
        if attr == "next":
            return obj.next
        return super().get_attribute(obj.job, attr, default)


class RefusalSchema(Answer):
    """Why one of several was refused."""

    code = fields.String()
    message = fields.String()


class CompletionSchema(Answer):
    """What became of one of several jobs: as a call of its own would have been answered."""

    job_id = fields.String()
    status = fields.Integer()
    job = fields.Nested(JobSchema, allow_none=True)
    detail = fields.Nested(RefusalSchema, allow_none=True)


class CompletionsSchema(Answer):
    """What became of each, in the order of the request, and what was granted next."""

    items = fields.List(fields.Nested(CompletionSchema))
    next = fields.Nested(
        ClaimSchema,
        allow_none=True,
        metadata={"description": "null: not asked for, or the claim could not be tried"},
    )


class HeartbeatSchema(JobSchema):
    """The job with its new deadline, and orders for the worker."""

    drain = fields.Boolean(metadata={"description": "finish what runs and claim no more"})
    expires_in = fields.Float(metadata={"description": "seconds until the lease ends"})

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """Look up the orders in the heartbeat and all else in its job."""
        if attr == "drain":
            return obj.drain
        if attr == "expires_in":
            return obj.expires_in_s
        return super().get_attribute(obj.job, attr, default)


class EventSchema(Answer):
    """An entry of a job's log."""

    id = fields.UUID()
    job_id = fields.UUID()
    level = fields.String(validate=validate.OneOf(LEVELS))
    message = fields.String()
    payload = fields.Dict(allow_none=True)
    created_at = Moment()
    seq = fields.Integer()
    attempt = fields.Integer()
    fence = fields.Integer()


class EventsSchema(Answer):
    """The entries of a batch as they stand in the log."""

    items = fields.List(fields.Nested(EventSchema))


class EventPageSchema(EventsSchema):
    """A part of a job's log, oldest first; ``cursor`` is the ``after`` of the next call."""

    cursor = fields.Integer(
        allow_none=True, metadata={"description": "null after a moment beyond which is nothing"}
    )


class AttemptSchema(Answer):
    """One lease of a job; ``outcome`` and ``endedAt`` are null while it is open."""

    job_id = fields.UUID()
    fence = fields.Integer(metadata={"description": "grows with every lease of the job"})
    attempt = fields.Integer()
    run = fields.Integer(metadata={"description": "grows with every redrive"})
    worker_id = fields.String()
    started_at = Moment()
    ended_at = Moment(allow_none=True)
    outcome = fields.String(
        allow_none=True,
        metadata={
            "description": "succeeded, failed, lost (its lease ran out), released, undelivered "
            "(never taken up) or cancelled"
        },
    )
    error_message = fields.String(allow_none=True)


class AttemptsSchema(Answer):
    """All leases of a job, oldest first."""

    items = fields.List(fields.Nested(AttemptSchema))


class RedriveItemSchema(Answer):
    """What became of one job of a redrive."""

    id = fields.UUID()
    outcome = fields.String(
        validate=validate.OneOf([str(outcome) for outcome in RedriveOutcome]),
        metadata={"description": "matched: a dry run would bring it back"},
    )
    status = fields.String(allow_none=True, metadata={"description": "null: no such job"})
    next_attempt_at = Moment(
        allow_none=True, metadata={"description": "when it becomes ready; null: at once"}
    )


class RedrivenSchema(Answer):
    """What a redrive did, or with ``dryRun`` would do."""

    matched = fields.Integer(metadata={"description": "jobs that may be brought back"})
    redriven = fields.Integer(metadata={"description": "jobs that were; 0 after a dry run"})
    more = fields.Boolean(metadata={"description": "the filter means more than its limit"})
    items = fields.List(fields.Nested(RedriveItemSchema))


class HealthSchema(Answer):
    """A process that answers."""

    status = fields.String(validate=validate.OneOf(["ok"]))
