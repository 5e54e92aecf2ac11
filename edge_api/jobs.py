"""For producers and operators: make, list, look at and cancel jobs."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from flask.views import MethodView

from broker.errors import InvalidPayload, JobNotFound
from broker.progress import with_progress
from broker.records import Job, NewJob
from edge_api.answers import AttemptsSchema, JobPageSchema, JobSchema
from edge_api.arguments import CancelArgs, CreateJobArgs, ListJobsArgs
from edge_api.auth import USERS, Kind, principal
from edge_api.fields import json_size
from edge_api.holding import job_id_of, shown
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("jobs", __name__, url_prefix=f"{PREFIX}/jobs", description="Make and watch jobs")


@blp.route("")
class Jobs(MethodView):
    """All jobs."""

    @blp.allow(*USERS)
    @blp.arguments(CreateJobArgs)
    @blp.response(201, JobSchema)
    def post(self, args: dict[str, Any]) -> Job:
        """Queue a job.

        ---
        The same idempotency key of the same creator gives the same job again.
        """
        services = current_services()
        most = services.settings.queue.payload_max_bytes
        if json_size(args["payload"]) > most:
            raise InvalidPayload(f"payload is larger than {most} bytes")
        caller = principal().id
        new = NewJob(
            task_id=str(uuid4()),
            queue=args["queue"] or services.settings.default_queue,
            type=args["type"],
            payload=args["payload"],
            priority=args["priority"],
            max_attempts=args["max_attempts"],
            affinity_key=args["affinity_key"],
            idempotency_key=args["idempotency_key"],
            created_by=caller,
            requested_by=caller,
        )
        return shown(services.queue.create(new))

    @blp.allow(*USERS)
    @blp.arguments(ListJobsArgs, location="query")
    @blp.response(200, JobPageSchema)
    def get(self, args: dict[str, Any]) -> dict[str, Any]:
        """List jobs, newest first."""
        jobs, cursor = current_services().queue.catalog.page(**args)
        jobs = with_progress(current_services().queue.reservations, jobs)
        return {"items": [shown(job) for job in jobs], "next_cursor": cursor}


@blp.route("/<string:job_id>", endpoint="job")
class OneJob(MethodView):
    """One job."""

    @blp.allow(*USERS, Kind.WORKER)
    @blp.response(200, JobSchema)
    def get(self, job_id: str) -> Job:
        """Look at a job; a worker sees what it holds and nothing else."""
        queue = current_services().queue
        [job] = with_progress(queue.reservations, [queue.catalog.get(job_id_of(job_id))])
        caller = principal()
        if caller.kind is not Kind.WORKER:
            return shown(job)
        if not caller.holds(job):
            raise JobNotFound
        return job


@blp.route("/<string:job_id>/attempts", endpoint="attempts")
class Attempts(MethodView):
    """What became of each lease of a job."""

    @blp.allow(*USERS)
    @blp.response(200, AttemptsSchema)
    def get(self, job_id: str) -> dict[str, Any]:
        """List a job's leases: who had each, from when to when, and how it ended."""
        return {"items": current_services().queue.catalog.attempts(job_id_of(job_id))}


@blp.route("/<string:job_id>/cancel", endpoint="cancel")
class Cancel(MethodView):
    """The end of a job from our side."""

    @blp.allow(*USERS)
    @blp.arguments(CancelArgs)
    @blp.response(200, JobSchema)
    def post(self, args: dict[str, Any], job_id: str) -> Job:
        """Cancel a queued job, or ask a running one's worker to stop.

        ---
        A repeat gives the same job.
        """
        return shown(
            current_services().queue.cancel(
                job_id_of(job_id), reason=args["reason"], requested_by=principal().id
            )
        )
