"""What workers and those who look after them get: tokens, and the words of a daemon's visit."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from edge_api.answers import Answer
from edge_api.fields import Moment


class Allowed(fields.List[str]):
    """What a token allows; null does not restrict, an empty list allows nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(fields.String(), allow_none=True, **kwargs)


class WorkerTokenSchema(Answer):
    """A worker's token: never its secret."""

    id = fields.String(attribute="credential.id")
    worker_id = fields.String(attribute="credential.worker_id")
    description = fields.String(attribute="credential.description", allow_none=True)
    allowed_repositories = Allowed(attribute="credential.policy.repositories")
    allowed_job_types = Allowed(attribute="credential.policy.types")
    capabilities = Allowed(attribute="credential.policy.capabilities")
    is_active = fields.Boolean()
    created_at = Moment(attribute="credential.created_at")
    expires_at = Moment(attribute="credential.expires_at", allow_none=True)
    last_used_at = Moment(attribute="credential.last_used_at", allow_none=True)
    queues = Allowed(attribute="credential.policy.queues")
    max_concurrency = fields.Integer(attribute="credential.policy.max_concurrency", allow_none=True)
    ip_ranges = Allowed(attribute="credential.policy.ip_ranges")


class NewTokenSchema(Answer):
    """A new token; its text is shown this once."""

    token = fields.String()
    worker_token = fields.Nested(WorkerTokenSchema)


class WorkerTokensSchema(Answer):
    """Workers' tokens, newest first."""

    items = fields.List(fields.Nested(WorkerTokenSchema))


class HelloSchema(Answer):
    """The rhythm the edge asks of a worker, and what it can do beyond the base contract."""

    worker_id = fields.String()
    heartbeat_seconds = fields.Float()
    wait_seconds = fields.Integer()
    lease_seconds = fields.Integer()
    features = fields.List(fields.String())


class ByeSchema(Answer):
    """Who was bidden goodbye."""

    worker_id = fields.String()
