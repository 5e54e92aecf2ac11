"""What the calls about orders take and give."""

from __future__ import annotations

from marshmallow import fields, validate

from edge_api.answers import Answer
from edge_api.arguments import SEQ_MAX, WAIT_MAX_S, Args
from edge_api.fields import QUEUE, Int, QueryInt, QuerySeconds, Word


class ControlArgs(Args):
    """Which orders a daemon knows, and how long it would wait for others."""

    instance_id = Word(longest=128, load_default=None)
    cursor = QueryInt(load_default=0, validate=validate.Range(0, SEQ_MAX))
    wait_seconds = QuerySeconds(load_default=0.0, validate=validate.Range(0, WAIT_MAX_S))


class ConcurrencyArgs(Args):
    """How many jobs a worker may run at once; null leaves it to its owner."""

    concurrency = Int(required=True, allow_none=True, validate=validate.Range(0, 10_000))


class PauseArgs(Args):
    """One queue."""

    queue = fields.String(required=True, validate=QUEUE)


class OrderSchema(Answer):
    """Something the worker shall do."""

    kind = fields.String(
        validate=validate.OneOf(["cancel", "drain", "resume", "concurrency", "pause"])
    )
    job_id = fields.UUID(allow_none=True, metadata={"description": "of cancel"})
    n = fields.Integer(
        allow_none=True, metadata={"description": "of concurrency; null: as its owner says"}
    )
    queue = fields.String(allow_none=True, metadata={"description": "of pause"})


class ControlSchema(Answer):
    """How a worker's orders stand, if they are newer than the cursor that came; else none."""

    cursor = fields.Integer()
    orders = fields.List(fields.Nested(OrderSchema))


class StandingSchema(Answer):
    """What a worker is told to do."""

    worker_id = fields.String()
    drain = fields.Boolean(metadata={"description": "it finishes what runs and claims no more"})
    concurrency = fields.Integer(
        allow_none=True, metadata={"description": "jobs at once; null: as its owner says"}
    )
    paused_queues = fields.List(
        fields.String(),
        attribute="paused",
        metadata={"description": "nothing of these is granted to it"},
    )
    cursor = fields.Integer()
