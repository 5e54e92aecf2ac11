"""For workers: claim jobs, keep their leases, and end them one way or another."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView

from broker.errors import InvalidPayload
from broker.records import ClaimRequest, Heartbeat, Job
from edge_api.answers import ClaimSchema, HeartbeatSchema, JobSchema
from edge_api.arguments import (
    CancelAckArgs,
    ClaimArgs,
    ClaimHeaders,
    CompleteArgs,
    FailArgs,
    HeartbeatArgs,
    ReleaseArgs,
)
from edge_api.auth import Kind, principal
from edge_api.fields import json_size
from edge_api.holding import holder_of, job_id_of, own
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("leases", __name__, url_prefix=f"{PREFIX}/jobs", description="Work on jobs")


@blp.route("/claim", endpoint="claim")
class Claim(MethodView):
    """The call by which a worker asks for jobs."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(ClaimArgs)
    @blp.arguments(ClaimHeaders, location="headers")
    @blp.response(200, ClaimSchema)
    def post(self, args: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
        """Take the best jobs this worker may run, waiting for them if it likes.

        ---
        The same Idempotency-Key within the lease gives the same jobs again.
        """
        caller = principal()
        request = ClaimRequest(
            worker_id=caller.worker,
            policy=caller.policy,
            lease_seconds=args["lease_seconds"],
            allowed_types=args["allowed_types"] and tuple(args["allowed_types"]),
            worker_capabilities=args["worker_capabilities"] and tuple(args["worker_capabilities"]),
            max_jobs=args["max_jobs"],
            claim_key=headers["idempotency_key"],
            instance_id=args["instance_id"],
        )
        jobs = current_services().waiting.claim(request, wait_s=args["wait_seconds"])
        return {"job": jobs[0] if jobs else None, "jobs": jobs}


@blp.route("/<string:job_id>/heartbeat", endpoint="heartbeat")
class Beat(MethodView):
    """The sign of life of a lease."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(HeartbeatArgs)
    @blp.response(200, HeartbeatSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Heartbeat:
        """Extend a lease, and hear of a cancel."""
        return current_services().queue.heartbeat(
            job_id_of(job_id), holder_of(args), lease_seconds=args["lease_seconds"]
        )


@blp.route("/<string:job_id>/complete", endpoint="complete")
class Complete(MethodView):
    """The good end."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(CompleteArgs)
    @blp.response(200, JobSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Job:
        """Say that the work is done.

        ---
        A repeat with the same lease and the same result is answered alike.
        """
        queue = current_services().queue
        if json_size(args["result"]) > queue.settings.result_max_bytes:
            raise InvalidPayload(f"result is larger than {queue.settings.result_max_bytes} bytes")
        holder = holder_of(args)
        job = queue.complete(
            job_id_of(job_id),
            holder,
            result=args["result"],
            result_summary=args["result_summary"],
        )
        return own(job, holder)


@blp.route("/<string:job_id>/fail", endpoint="fail")
class Fail(MethodView):
    """The bad end."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(FailArgs)
    @blp.response(200, JobSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Job:
        """Say that the work failed, and whether another try may help.

        ---
        A repeat with the same lease and the same error is answered alike.
        """
        holder = holder_of(args)
        job = current_services().queue.fail(
            job_id_of(job_id),
            holder,
            error_message=args["error_message"],
            retryable=args["retryable"],
            error_type=args["error_type"],
            traceback=args["traceback"],
            retry_after_s=args["retry_after_seconds"],
        )
        return own(job, holder)


@blp.route("/<string:job_id>/release", endpoint="release")
class Release(MethodView):
    """The end that costs no attempt."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(ReleaseArgs)
    @blp.response(200, JobSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Job:
        """Give a job back, for somebody else to run."""
        holder = holder_of(args)
        queue = current_services().queue
        return own(queue.release(job_id_of(job_id), holder, reason=args["reason"]), holder)


@blp.route("/<string:job_id>/cancel/ack", endpoint="cancel_ack")
class CancelAck(MethodView):
    """The worker's word that it stopped."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(CancelAckArgs)
    @blp.response(200, JobSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Job:
        """Acknowledge a cancel: the work has stopped."""
        holder = holder_of(args)
        queue = current_services().queue
        return own(queue.cancel_ack(job_id_of(job_id), holder, message=args["message"]), holder)
