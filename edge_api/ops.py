"""For whoever keeps the edge running: does it live, can it serve, and what has it counted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Response
from flask.views import MethodView

from broker import figures
from edge_api.answers import HealthSchema
from edge_api.auth import USERS, Kind
from edge_api.services import current_services
from edge_api.smorest import Blueprint

blp = Blueprint("ops", __name__, description="Health")

#: what the edge offers, written from its code by ``edge_api.openapi``
DESCRIPTION: Final = Path(__file__).with_name("openapi.json")


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


@blp.route("/metrics", endpoint="metrics")
class Metrics(MethodView):
    """What this edge has counted."""

    @blp.allow(Kind.OPERATOR)
    @blp.response(200, {"type": "string"}, content_type="text/plain")
    def get(self) -> Response:
        """Write the figures for Prometheus; without a credential they are on --metrics-port."""
        return Response(figures.text(), content_type=figures.CONTENT_TYPE)


@blp.route("/openapi.json", endpoint="openapi")
class Description(MethodView):
    """What this edge offers."""

    @blp.allow(*USERS, Kind.WORKER)
    @blp.response(200, {"type": "object"})
    def get(self) -> Response:
        """Give the description of this edge, in OpenAPI 3.1."""
        return Response(DESCRIPTION.read_bytes(), content_type="application/json")
