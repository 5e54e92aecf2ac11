"""A job's log: its holder writes, users read."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from flask.views import MethodView

from broker.records import NewEvent
from edge_api.answers import EventPageSchema, EventSchema, EventsSchema
from edge_api.arguments import AppendEventsArgs, ReadEventsArgs
from edge_api.auth import USERS, Kind
from edge_api.holding import holder_of, job_id_of
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("events", __name__, url_prefix=f"{PREFIX}/jobs", description="Logs of jobs")

_APPENDED: Final = {
    "description": "The entry as it stands in the log, or all those of the batch",
    "content": {"application/json": {"schema": {"oneOf": [EventSchema, EventsSchema]}}},
}


@blp.route("/<string:job_id>/events", endpoint="events")
class Events(MethodView):
    """The log of one job."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(AppendEventsArgs)
    @blp.doc(responses={"201": _APPENDED})
    def post(self, args: dict[str, Any], job_id: str) -> tuple[Any, int]:
        """Append an entry, or a batch of them.

        ---
        An entry whose workerSeq this lease has sent before adds nothing.
        """
        batch = args["events"]
        new = [
            NewEvent(
                message=one["message"],
                level=one["level"],
                payload=one["payload"],
                worker_seq=one["worker_seq"],
            )
            for one in ([args] if batch is None else batch)
        ]
        stored = current_services().queue.append_events(job_id_of(job_id), holder_of(args), new)
        answer = (
            EventSchema().dump(stored[0])
            if batch is None
            else EventsSchema().dump({"items": stored})
        )
        return answer, 201

    @blp.allow(*USERS)
    @blp.arguments(ReadEventsArgs, location="query")
    @blp.response(200, EventPageSchema)
    def get(self, args: dict[str, Any], job_id: str) -> dict[str, Any]:
        """Read entries, oldest first, waiting for them if one likes."""
        job_id = job_id_of(job_id)
        services = current_services()
        after = args["after"]
        moment = after if isinstance(after, datetime) else None
        seq = after if isinstance(after, int) else None
        found = services.waiting.poll(
            lambda: services.queue.catalog.events(
                job_id, after_seq=seq, after=moment, limit=args["limit"]
            ),
            wait_s=args["wait_seconds"],
        )
        beyond = seq if moment is None else None
        cursor = found[-1].seq if found else (beyond if after is not None else 0)
        return {"items": found, "cursor": cursor}
