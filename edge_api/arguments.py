"""What clients send: camelCase; a key nobody declared is from a newer client, and is ignored."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import marshmallow as ma
from marshmallow import fields, validate

from broker.states import REDRIVABLE, Status
from edge_api.fields import (
    DIGEST,
    INT32_MAX,
    INT32_MIN,
    JOB_ID,
    LEASE_ID,
    MEDIA_TYPE,
    QUEUE,
    WORKER_ID,
    After,
    Cursor,
    Flag,
    Int,
    Moment,
    Prose,
    QueryInt,
    QuerySeconds,
    Seconds,
    StatusFilter,
    Word,
    Words,
    artifact_name,
    camel,
    repository,
)

KIB: Final = 1024
SIZE_MAX: Final = 2**40
SEQ_MAX: Final = 2**53 - 1
WAIT_MAX_S: Final = 50
LEVELS: Final = ("info", "warn", "error")


class Args(ma.Schema):
    """A request."""

    #: what its body may weigh, beside ``body_holds``
    body_max: ClassVar[int] = 256 * KIB
    #: setting that says how large the one big thing in the body may be
    body_holds: ClassVar[str | None] = None
    #: whether no body at all means an empty object
    body_optional: ClassVar[bool] = False

    class Meta:
        """Never bind what is not declared."""

        unknown = ma.EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Name the field as the wire does."""
        field_obj.data_key = field_obj.data_key or camel(field_name)


class CreateJobArgs(Args):
    """A job to be made."""

    body_max = 16 * KIB
    body_holds = "payload_max_bytes"

    type = Word(longest=64, required=True)
    priority = Int(load_default=0, validate=validate.Range(INT32_MIN, INT32_MAX))
    payload = fields.Dict(keys=fields.String(), load_default=dict)
    affinity_key = Word(allow_none=True, load_default=None)
    max_attempts = Int(load_default=3, validate=validate.Range(1, 100))
    queue = fields.String(allow_none=True, load_default=None, validate=QUEUE)
    idempotency_key = Word(allow_none=True, load_default=None)


class ListJobsArgs(Args):
    """Which jobs to list."""

    status = StatusFilter()
    type = Word(load_default=None)
    queue = Word(load_default=None)
    worker = Word(load_default=None)
    limit = QueryInt(load_default=50, validate=validate.Range(1, 200))
    cursor = Cursor()


class CancelArgs(Args):
    """Why a job is cancelled."""

    body_optional = True

    reason = fields.String(allow_none=True, load_default=None, validate=validate.Length(max=1000))


class RedriveFilterArgs(Args):
    """Which of the jobs that failed for good."""

    status = fields.String(
        load_default=str(Status.DEAD_LETTER), validate=validate.OneOf(tuple(REDRIVABLE))
    )
    type = Word(longest=64, allow_none=True, load_default=None)
    queue = Word(allow_none=True, load_default=None)
    since = Moment(allow_none=True, load_default=None)
    limit = Int(load_default=1000, validate=validate.Range(1, 10_000))


class RedriveArgs(Args):
    """What to bring back: these jobs, or those that a filter means."""

    ids = fields.List(
        fields.String(validate=JOB_ID),
        allow_none=True,
        load_default=None,
        validate=validate.Length(min=1, max=1000),
    )
    filter = fields.Nested(RedriveFilterArgs, allow_none=True, load_default=None)
    max_rate = Seconds(
        allow_none=True,
        load_default=None,
        validate=validate.Range(0.01, 10_000),
        metadata={"description": "jobs a second that become ready"},
    )
    dry_run = Flag(load_default=False)

    @ma.validates_schema
    def one_or_the_other(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Ask for ids or a filter; a call without either is a mistake, not "all"."""
        if (data["ids"] is None) == (data["filter"] is None):
            raise ma.ValidationError("Give ids or a filter.", "ids")


class WorkerArgs(Args):
    """What every call of a worker says: who calls."""

    worker_id = fields.String(required=True, validate=WORKER_ID)


class HolderArgs(WorkerArgs):
    """What every call on a held job says; clients of the base contract know no lease id."""

    lease_id = fields.String(allow_none=True, load_default=None, validate=LEASE_ID)


class NewEventArgs(Args):
    """One entry of a job's log."""

    level = fields.String(load_default="info", validate=validate.OneOf(LEVELS))
    message = Prose(required=True)
    payload = fields.Dict(keys=fields.String(), allow_none=True, load_default=None)
    worker_seq = Int(allow_none=True, load_default=None, validate=validate.Range(0, SEQ_MAX))


class AppendEventsArgs(HolderArgs):
    """One entry, or up to a hundred of them in ``events``."""

    body_max = 1024 * KIB

    level = fields.String(load_default="info", validate=validate.OneOf(LEVELS))
    message = Prose(load_default=None)
    payload = fields.Dict(keys=fields.String(), allow_none=True, load_default=None)
    worker_seq = Int(allow_none=True, load_default=None, validate=validate.Range(0, SEQ_MAX))
    events = fields.List(
        fields.Nested(NewEventArgs),
        allow_none=True,
        load_default=None,
        validate=validate.Length(min=1, max=100),
    )

    @ma.validates_schema
    def one_or_many(self, data: dict[str, Any], **_kwargs: Any) -> None:
        """Ask for a message unless there is a batch."""
        if data["events"] is None and data["message"] is None:
            raise ma.ValidationError("Missing data for required field.", "message")


class ReadEventsArgs(Args):
    """From where to read a job's log, exclusive."""

    after = After()
    limit = QueryInt(load_default=200, validate=validate.Range(1, 500))
    wait_seconds = QuerySeconds(load_default=0.0, validate=validate.Range(0, WAIT_MAX_S))


class LimitArgs(Args):
    """How many to list."""

    limit = QueryInt(load_default=200, validate=validate.Range(1, 500))


class UploadArgs(HolderArgs):
    """The fields beside an uploaded file."""

    name = fields.String(required=True, validate=artifact_name)
    content_type = fields.String(allow_none=True, load_default=None, validate=MEDIA_TYPE)
    digest = fields.String(allow_none=True, load_default=None, validate=DIGEST)


class BeginUploadArgs(HolderArgs):
    """A file to come in parts: all of it is said beforehand."""

    name = fields.String(required=True, validate=artifact_name)
    content_type = fields.String(allow_none=True, load_default=None, validate=MEDIA_TYPE)
    size_bytes = Int(required=True, validate=validate.Range(1, SIZE_MAX))
    digest = fields.String(required=True, validate=DIGEST)


class PartArgs(HolderArgs):
    """The fields before the file of a part."""

    digest = fields.String(required=True, validate=DIGEST)


class LeaseArgs(Args):
    """Under which lease a holder asks."""

    lease_id = fields.String(load_default=None, validate=LEASE_ID)


class CreateTokenArgs(Args):
    """A worker to be let in, and what it may run."""

    worker_id = fields.String(required=True, validate=WORKER_ID)
    description = fields.String(
        allow_none=True, load_default=None, validate=validate.Length(max=255)
    )
    allowed_repositories = fields.List(
        fields.String(validate=repository),
        allow_none=True,
        load_default=None,
        validate=validate.Length(max=256),
    )
    allowed_job_types = Words()
    capabilities = Words()
    queues = Words()
    max_concurrency = Int(allow_none=True, load_default=None, validate=validate.Range(1, 10_000))
    expires_at = Moment(allow_none=True, load_default=None)
    ip_ranges = Words()


class RotateTokenArgs(Args):
    """How long both tokens are good, and until when the new one is."""

    body_optional = True

    overlap_seconds = Int(load_default=86_400, validate=validate.Range(0, 90 * 86_400))
    expires_at = Moment(allow_none=True, load_default=None)


class ByeArgs(WorkerArgs):
    """Which daemon stops."""

    instance_id = Word(longest=128, required=True)


class HelloArgs(WorkerArgs):
    """What a worker that has just started says of itself."""

    instance_id = Word(longest=128, allow_none=True, load_default=None)
    version = Word(longest=64, allow_none=True, load_default=None)
    types = Words()
    capabilities = Words()
    concurrency = Int(allow_none=True, load_default=None, validate=validate.Range(1, 10_000))
    system = Word(longest=64, allow_none=True, load_default=None)
    pid = Int(allow_none=True, load_default=None, validate=validate.Range(1, 2**31))
