"""For workers: claim jobs, keep their leases, and end them one way or another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flask
from flask.views import MethodView

from broker.errors import DrawbridgeError, InvalidPayload
from broker.records import ClaimRequest, Completion, Heartbeat, Holder, Job, Json
from edge_api.answers import (
    ClaimSchema,
    CompletedSchema,
    CompletionsSchema,
    HeartbeatSchema,
    JobSchema,
)
from edge_api.auth import Kind, principal, proof
from edge_api.errors import status_of
from edge_api.fields import json_size
from edge_api.holding import holder_of, job_id_of, own
from edge_api.lease_arguments import (
    CancelAckArgs,
    ClaimArgs,
    ClaimHeaders,
    CompleteArgs,
    CompleteManyArgs,
    FailArgs,
    HeartbeatArgs,
    ReleaseArgs,
)
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint
from edge_api.traffic import caller_left

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
        services, prove = current_services(), proof()
        request = _request(args, headers["idempotency_key"])

        def renewed() -> ClaimRequest:
            paused = services.pauses.of(request.worker_id)
            return replace(request, policy=prove().policy, paused=paused)

        jobs = services.waiting.claim(
            request,
            wait_s=args["wait_seconds"],
            left=partial(caller_left, flask.request.environ),
            renewed=renewed,
        )
        return _granted(jobs)


@blp.route("/<string:job_id>/heartbeat", endpoint="heartbeat")
class Beat(MethodView):
    """The sign of life of a lease."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(HeartbeatArgs)
    @blp.response(200, HeartbeatSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Heartbeat:
        """Extend a lease, tell how far the work is, and hear of a cancel and of draining."""
        services = current_services()
        beat = services.queue.heartbeat(
            job_id_of(job_id),
            holder_of(args),
            lease_seconds=args["lease_seconds"],
            progress=args["progress"],
        )
        return replace(beat, drain=services.presence.drains(principal().worker))


@dataclass(frozen=True, slots=True)
class Completed:
    """A job that was completed, and the answer to the claim that came with it."""

    job: Job
    next: dict[str, Any] | None


@blp.route("/<string:job_id>/complete", endpoint="complete")
class Complete(MethodView):
    """The good end."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(CompleteArgs)
    @blp.arguments(ClaimHeaders, location="headers")
    @blp.response(200, CompletedSchema)
    def post(self, args: dict[str, Any], headers: dict[str, Any], job_id: str) -> Completed:
        """Say that the work is done, and with claimNext ask for more.

        ---
        A repeat with the same lease and the same result is answered alike, and claims the same
        jobs: under the Idempotency-Key, or without one under the lease.
        """
        queue = current_services().queue
        _check_result(args["result"])
        holder = holder_of(args)
        claim = _next_claim(args, headers, [(job_id, holder.lease_id)])
        job = queue.complete(
            job_id_of(job_id),
            holder,
            result=args["result"],
            result_summary=args["result_summary"],
        )
        return Completed(own(job, holder), _claimed(claim))


@blp.route("/complete", endpoint="complete_many")
class CompleteMany(MethodView):
    """The good end of several jobs."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(CompleteManyArgs)
    @blp.arguments(ClaimHeaders, location="headers")
    @blp.response(200, CompletionsSchema)
    def post(self, args: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
        """Say of several jobs that the work is done, each answered by itself.

        ---
        One that is refused keeps no other from ending. A repeat is answered alike.
        """
        worker = principal().worker
        ends = [Completion(**one) for one in args["items"]]
        for end in ends:
            _check_result(end.result)
        claim = _next_claim(args, headers, [(end.job_id, end.lease_id) for end in ends])
        outcomes = current_services().queue.complete_many(worker, ends)
        items = [
            _completion(end, Holder(worker_id=worker, lease_id=end.lease_id), outcome)
            for end, outcome in zip(ends, outcomes, strict=True)
        ]
        return {"items": items, "next": _claimed(claim)}


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
        job = current_services().queue.release(
            job_id_of(job_id), holder, reason=args["reason"], checkpoint=args["checkpoint"]
        )
        return own(job, holder)


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


def _request(args: dict[str, Any], key: str | None) -> ClaimRequest:
    caller = principal()
    return ClaimRequest(
        worker_id=caller.worker,
        policy=caller.policy,
        lease_seconds=args["lease_seconds"],
        allowed_types=args["allowed_types"] and tuple(args["allowed_types"]),
        worker_capabilities=args["worker_capabilities"] and tuple(args["worker_capabilities"]),
        max_jobs=args["max_jobs"],
        claim_key=key,
        instance_id=args["instance_id"],
        paused=current_services().pauses.of(caller.worker),
    )


def _next_claim(
    args: dict[str, Any], headers: dict[str, Any], ends: Sequence[tuple[str, str | None]]
) -> ClaimRequest | None:
    """Return the claim that came with completes, refused now if it may see nothing.

    Its key is the caller's or, so that a repeat takes no other jobs, made of the leases that end.
    """
    if args["claim_next"] is None:
        return None
    key = headers["idempotency_key"]
    if key is None and all(lease is not None for _, lease in ends):
        key = "next:" + hashlib.sha256(json.dumps(sorted(ends)).encode()).hexdigest()
    request = _request(args["claim_next"], key)
    current_services().queue.eligibility(request)
    return request


def _claimed(claim: ClaimRequest | None) -> dict[str, Any] | None:
    if claim is None:
        return None
    jobs = current_services().queue.claim_next(claim)
    return None if jobs is None else _granted(jobs)


def _granted(jobs: list[Job]) -> dict[str, Any]:
    drain = current_services().presence.drains(principal().worker)
    return {"job": jobs[0] if jobs else None, "jobs": jobs, "drain": drain}


def _completion(end: Completion, holder: Holder, outcome: Job | DrawbridgeError) -> dict[str, Any]:
    if isinstance(outcome, DrawbridgeError):
        return {
            "job_id": end.job_id, "status": status_of(outcome), "job": None, "detail": outcome,
        }  # fmt: skip
    return {"job_id": end.job_id, "status": 200, "job": own(outcome, holder), "detail": None}


def _check_result(result: Json) -> None:
    most = current_services().settings.queue.result_max_bytes
    if json_size(result) > most:
        raise InvalidPayload(f"result is larger than {most} bytes")
