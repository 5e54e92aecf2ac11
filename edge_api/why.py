"""For producers and operators: why a job is not running."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields

from edge_api.answers import Answer
from edge_api.auth import USERS
from edge_api.fields import Moment
from edge_api.holding import job_id_of
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("why", __name__, url_prefix=f"{PREFIX}/jobs", description="Why a job waits")


class ReasonSchema(Answer):
    """Something about the job itself: running, ended, scheduled, expired, or no_worker."""

    code = fields.String()
    message = fields.String()


class ExcludedSchema(Answer):
    """A worker that was seen lately, and the rule that keeps the job from it."""

    worker_id = fields.String()
    last_seen_at = Moment(allow_none=True)
    token_id = fields.String(
        attribute="credential",
        allow_none=True,
        metadata={"description": "the credential that comes closest"},
    )
    eligible = fields.Boolean(attribute="verdict.allowed")
    rule = fields.String(
        attribute="verdict.rule",
        metadata={
            "description": "allowedJobTypes, types, queues, capabilities, allowedRepositories, "
            "maxConcurrency, drain, paused, credential, or none"
        },
    )
    message = fields.String(attribute="verdict.message")


class WhySchema(Answer):
    """Why a job is not running."""

    job_id = fields.UUID(attribute="job.id")
    status = fields.String(attribute="job.status")
    queue = fields.String(attribute="job.queue")
    next_attempt_at = Moment(attribute="job.next_attempt_at", allow_none=True)
    reasons = fields.List(fields.Nested(ReasonSchema))
    workers = fields.List(fields.Nested(ExcludedSchema))


@blp.route("/<string:job_id>/why", endpoint="why")
class WhyNot(MethodView):
    """Why a job is not running."""

    @blp.allow(*USERS)
    @blp.response(200, WhySchema)
    def get(self, job_id: str) -> Any:
        """Say what about the job, and for each live worker which rule, keeps it from running."""
        services = current_services()
        oidc = services.oidc
        others = dict if oidc is None else oidc.policies
        return services.why.explain(job_id_of(job_id), others)
