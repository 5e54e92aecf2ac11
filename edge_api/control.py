"""Orders to workers: what operators say, and the call in which a worker waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from flask.views import MethodView

from broker.records import Orders
from edge_api.auth import Kind, principal, proof, source
from edge_api.control_fields import (
    ConcurrencyArgs,
    ControlArgs,
    ControlSchema,
    PauseArgs,
    StandingSchema,
)
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint

blp = Blueprint("control", __name__, url_prefix=f"{PREFIX}/workers", description="Steer workers")


@blp.route("/control", endpoint="control")
class Control(MethodView):
    """The call in which a worker hears what it shall do."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(ControlArgs, location="query")
    @blp.response(200, ControlSchema)
    def get(self, args: dict[str, Any]) -> dict[str, Any]:
        """Read all orders as they stand when some are newer than the cursor, waiting for that.

        ---
        Orders are how things stand and not messages: a repeat changes nothing, and whoever missed
        some is told all. Every answer to a worker carries the newest cursor it could be given in
        `Bridge-Control-Cursor`.
        """
        services = current_services()
        worker_id, known = principal().worker, args["cursor"]
        prove = proof()

        def look() -> Orders | None:
            # whose credential is revoked while he waits shall hear of it now
            prove()
            standing = services.queue.orders.read(worker_id, after=known)
            return standing if standing.cursor > known else None

        found = services.waiting.orders.wait(
            worker_id,
            look,
            wait_s=args["wait_seconds"],
            gone=partial(services.waiting.has_gone, worker_id, args["instance_id"]),
        )
        if found is None:
            return {"cursor": known, "orders": []}
        told = services.presence.told(worker_id)
        if told is None or told.cursor < found.cursor:
            # word of it was lost, or Redis was: heartbeats shall tell it too
            services.queue.orders.tell(found)
        return {"cursor": found.cursor, "orders": list(_orders(found))}


@blp.route("/<string:worker_id>/drain", endpoint="drain")
class Drain(MethodView):
    """The way to a worker without jobs."""

    @blp.allow(Kind.OPERATOR)
    @blp.response(200, StandingSchema)
    def post(self, worker_id: str) -> Orders:
        """Let a worker finish what it runs and claim no more, until it resumes.

        ---
        Nothing is granted to it meanwhile, whether it listens or not. A repeat changes nothing.
        """
        return current_services().queue.orders.drain(worker_id, by=principal().id, source=source())


@blp.route("/<string:worker_id>/resume", endpoint="resume")
class Resume(MethodView):
    """The way back."""

    @blp.allow(Kind.OPERATOR)
    @blp.response(200, StandingSchema)
    def post(self, worker_id: str) -> Orders:
        """Let a worker claim again.

        ---
        A repeat changes nothing.
        """
        return current_services().queue.orders.resume(worker_id, by=principal().id, source=source())


@blp.route("/<string:worker_id>/pause", endpoint="pause")
class Pause(MethodView):
    """The way to a worker without jobs of one queue."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(PauseArgs)
    @blp.response(200, StandingSchema)
    def post(self, args: dict[str, Any], worker_id: str) -> Orders:
        """Let a worker claim nothing more from one queue.

        ---
        Nothing of it is granted to it meanwhile, whether it listens or not. What runs goes on. A
        repeat changes nothing.
        """
        return current_services().queue.orders.pause(
            worker_id, args["queue"], by=principal().id, source=source()
        )


@blp.route("/<string:worker_id>/unpause", endpoint="unpause")
class Unpause(MethodView):
    """The way back, for one queue."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(PauseArgs)
    @blp.response(200, StandingSchema)
    def post(self, args: dict[str, Any], worker_id: str) -> Orders:
        """Let a worker claim from a queue again, if its token allows that.

        ---
        A repeat changes nothing.
        """
        return current_services().queue.orders.unpause(
            worker_id, args["queue"], by=principal().id, source=source()
        )


@blp.route("/<string:worker_id>/concurrency", endpoint="concurrency")
class Concurrency(MethodView):
    """How much a worker does at once."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(ConcurrencyArgs)
    @blp.response(200, StandingSchema)
    def post(self, args: dict[str, Any], worker_id: str) -> Orders:
        """Say how many jobs a worker may run at once.

        ---
        A repeat changes nothing. What runs goes on; a token's `maxConcurrency` still holds.
        """
        return current_services().queue.orders.set_concurrency(
            worker_id, args["concurrency"], by=principal().id, source=source()
        )


def _orders(standing: Orders) -> Iterator[dict[str, Any]]:
    """Tell how things stand as a list of things to do."""
    none = {"job_id": None, "n": None, "queue": None}
    yield none | {"kind": "drain" if standing.drain else "resume"}
    yield none | {"kind": "concurrency", "n": standing.concurrency}
    for queue in standing.paused:
        yield none | {"kind": "pause", "queue": queue}
    for job_id in standing.cancels:
        yield none | {"kind": "cancel", "job_id": job_id}
