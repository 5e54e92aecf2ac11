"""For operators: bring back what failed for good."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView

from broker.redrive_shapes import Redrive, RedriveFilter, Redriven
from broker.states import REDRIVABLE
from edge_api.answers import RedrivenSchema
from edge_api.arguments import RedriveArgs
from edge_api.auth import Kind, principal, source
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint(
    "dead_letters", __name__, url_prefix=f"{PREFIX}/dead-letters", description="Second chances"
)


@blp.route("/redrive", endpoint="redrive")
class RedriveJobs(MethodView):
    """The only way out of dead_letter and failed."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(RedriveArgs)
    @blp.response(200, RedrivenSchema)
    def post(self, args: dict[str, Any]) -> Redriven:
        """Queue dead letters and failed jobs again, with fresh attempts.

        ---
        A repeat of the same ids finds nothing more to bring back. What was rejected, or has
        expired, stays where it is.
        """
        wanted = args["filter"]
        if wanted is not None:
            wanted = RedriveFilter(statuses=REDRIVABLE[wanted.pop("status")], **wanted)
        return current_services().queue.redrive(
            Redrive(
                ids=tuple(args["ids"] or ()),
                filter=wanted,
                max_rate=args["max_rate"],
                dry_run=args["dry_run"],
                requested_by=principal().id,
                source=source(),
            )
        )
