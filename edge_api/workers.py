"""Workers and their tokens: who is let in, and what each is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from flask.views import MethodView

from broker.credential import Credential
from broker.policy import Policy
from edge_api.arguments import (
    ByeArgs,
    CreateTokenArgs,
    HelloArgs,
    LimitArgs,
    RotateTokenArgs,
)
from edge_api.auth import Kind, principal, source
from edge_api.fields import camel
from edge_api.services import current_services
from edge_api.smorest import PREFIX, Blueprint
from edge_api.worker_answers import (
    ByeSchema,
    HelloSchema,
    NewTokenSchema,
    WorkerTokenSchema,
    WorkerTokensSchema,
)

blp = Blueprint("workers", __name__, url_prefix=f"{PREFIX}/workers", description="Let workers in")

#: what this edge can beyond the base contract
FEATURES: Final = (
    "artifact-parts",
    "bye",
    "cancel-ack",
    "claim-batch",
    "claim-idempotency",
    "claim-next",
    "claim-wait",
    "complete-batch",
    "control",
    "event-batch",
    "event-wait",
    "lease-id",
    "progress",
    "release",
    "release-checkpoint",
    "result",
)
#: heartbeats to a lease
BEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Listed:
    """A worker's token as the wire shows it."""

    credential: Credential
    is_active: bool


def listed(credential: Credential, now: datetime) -> Listed:
    """Tell of a token whether it still lets its worker in."""
    expired = credential.expires_at is not None and credential.expires_at <= now
    return Listed(credential, credential.revoked_at is None and not expired)


@blp.route("/tokens", endpoint="tokens")
class Tokens(MethodView):
    """All tokens of workers."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(CreateTokenArgs)
    @blp.response(201, NewTokenSchema)
    def post(self, args: dict[str, Any]) -> dict[str, Any]:
        """Let a worker in; its token is shown this once."""
        services = current_services()
        now = services.clock.now()
        policy = Policy(
            types=_tuple(args["allowed_job_types"]),
            repositories=_tuple(args["allowed_repositories"]),
            capabilities=_tuple(args["capabilities"]),
            queues=_tuple(args["queues"]),
            max_concurrency=args["max_concurrency"],
            ip_ranges=_tuple(args["ip_ranges"]),
        )
        credential, text = services.credentials.create(
            Kind.WORKER,
            worker_id=args["worker_id"],
            description=args["description"],
            policy=policy,
            expires_at=args["expires_at"],
            created_by=principal().id,
            source=source(),
            now=now,
        )
        return {"token": text, "worker_token": listed(credential, now)}

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(LimitArgs, location="query")
    @blp.response(200, WorkerTokensSchema)
    def get(self, args: dict[str, Any]) -> dict[str, Any]:
        """List workers' tokens, newest first."""
        services = current_services()
        now = services.clock.now()
        found = services.credentials.list(kind=Kind.WORKER, limit=args["limit"])
        return {"items": [listed(one, now) for one in found]}


@blp.route("/tokens/<string:token_id>/revoke", endpoint="revoke")
class Revoke(MethodView):
    """The end of a token."""

    @blp.allow(Kind.OPERATOR)
    @blp.response(200, WorkerTokenSchema)
    def post(self, token_id: str) -> Listed:
        """Lock a worker out, for good and on every edge.

        ---
        A repeat changes nothing.
        """
        services = current_services()
        now = services.clock.now()
        credential = services.credentials.revoke(
            token_id, kind=Kind.WORKER, revoked_by=principal().id, source=source(), now=now
        )
        return listed(credential, now)


@blp.route("/tokens/<string:token_id>/rotate", endpoint="rotate")
class Rotate(MethodView):
    """The change of a token."""

    @blp.allow(Kind.OPERATOR)
    @blp.arguments(RotateTokenArgs)
    @blp.response(201, NewTokenSchema)
    def post(self, args: dict[str, Any], token_id: str) -> dict[str, Any]:
        """Give a worker a new token, shown this once; the old one stays good for a while.

        ---
        A repeat, while nobody has used the new one, replaces that one.
        """
        services = current_services()
        now = services.clock.now()
        credential, text = services.credentials.rotate(
            token_id,
            kind=Kind.WORKER,
            overlap=timedelta(seconds=args["overlap_seconds"]),
            expires_at=args["expires_at"],
            rotated_by=principal().id,
            source=source(),
            now=now,
        )
        return {"token": text, "worker_token": listed(credential, now)}


@blp.route("/hello", endpoint="hello")
class Hello(MethodView):
    """The first call of a worker that has started."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(HelloArgs)
    @blp.response(200, HelloSchema)
    def post(self, args: dict[str, Any]) -> dict[str, Any]:
        """Say what the worker is, and hear the rhythm it shall keep."""
        services = current_services()
        settings = services.settings
        worker_id = args.pop("worker_id")
        services.queue.hello(worker_id, {camel(name): value for name, value in args.items()})
        return {
            "worker_id": worker_id,
            "heartbeat_seconds": max(1.0, settings.lease_s / BEATS),
            "wait_seconds": settings.wait_s,
            "lease_seconds": settings.lease_s,
            "features": FEATURES,
        }


@blp.route("/bye", endpoint="bye")
class Bye(MethodView):
    """The last call of a worker that stops."""

    @blp.allow(Kind.WORKER)
    @blp.arguments(ByeArgs)
    @blp.response(200, ByeSchema)
    def post(self, args: dict[str, Any]) -> dict[str, Any]:
        """End this daemon's waiting calls; what it still holds stays held.

        ---
        Who holds nothing is offline from then on, until it calls again; a daemon that still held
        something may say it once more at its end. A repeat changes nothing.
        """
        services, worker_id = current_services(), principal().worker
        services.waiting.bye(worker_id, args["instance_id"])
        services.queue.bye(worker_id, args["instance_id"])
        return {"worker_id": worker_id}


def _tuple(words: list[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(words)
