"""Who works for us, for operators."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields

from edge_api.answers import Answer
from edge_api.arguments import LimitArgs
from edge_api.auth import Kind
from edge_api.fields import Moment
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("fleet", __name__, url_prefix=f"{PREFIX}/workers", description="Who works for us")


def _said(kind: type[fields.Field[Any]], key: str) -> fields.Field[Any]:
    """Declare what a worker said of itself in its last hello."""
    return kind(attribute=f"hello.{key}", dump_default=None, allow_none=True)


class HeldJobSchema(Answer):
    """A job that a worker holds, in short."""

    id = fields.UUID()
    type = fields.String()
    queue = fields.String()
    attempt = fields.Integer()
    fence = fields.Integer()
    started_at = Moment(allow_none=True)
    cancel_requested_at = Moment(allow_none=True)


class RemoteWorkerSchema(Answer):
    """A worker; what its last hello did not say is null."""

    worker_id = fields.String()
    online = fields.Boolean(metadata={"description": "seen within a minute"})
    draining = fields.Boolean(metadata={"description": "told to claim no more"})
    paused_queues = fields.List(
        fields.String(),
        attribute="paused",
        metadata={"description": "queues from which it was told to claim nothing"},
    )
    last_seen_at = Moment(allow_none=True)
    first_seen_at = Moment(allow_none=True)
    instance_id = _said(fields.String, "instanceId")
    version = _said(fields.String, "version")
    types = fields.List(
        fields.String(), attribute="hello.types", dump_default=None, allow_none=True
    )
    capabilities = fields.List(
        fields.String(), attribute="hello.capabilities", dump_default=None, allow_none=True
    )
    concurrency = _said(fields.Integer, "concurrency")
    held_jobs = fields.List(fields.Nested(HeldJobSchema), attribute="held")


class RemoteWorkersSchema(Answer):
    """Workers, last seen first."""

    items = fields.List(fields.Nested(RemoteWorkerSchema))


@blp.route("", endpoint="workers")
class Workers(MethodView):
    """The fleet."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(LimitArgs, location="query")
    @blp.response(200, RemoteWorkersSchema)
    def get(self, args: dict[str, Any]) -> dict[str, Any]:
        """List workers: when each was seen, what it is, which jobs it holds."""
        return {"items": current_services().queue.roster.workers(limit=args["limit"])}
