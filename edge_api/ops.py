"""For whoever keeps the edge running: does it live, and can it serve."""

from __future__ import annotations

from flask.views import MethodView

from edge_api.answers import HealthSchema
from edge_api.services import current_services
from edge_api.smorest import Blueprint

blp = Blueprint("ops", __name__, description="Health")


@blp.route("/healthz", endpoint="healthz")
class Health(MethodView):
    """The process."""

    @blp.allow()
    @blp.response(200, HealthSchema)
    def get(self) -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}


@blp.route("/readyz", endpoint="readyz")
class Ready(MethodView):
    """The process and its stores."""

    @blp.allow()
    @blp.response(200, HealthSchema)
    def get(self) -> dict[str, str]:
        """Say that ledger and reservations answer; 503 while one does not."""
        current_services().queue.ready()
        return {"status": "ok"}
