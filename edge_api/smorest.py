"""The only one to know flask-smorest's habits, and where the contract wants others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import flask_smorest
import marshmallow as ma
from flask import Flask, Request, Response
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

from edge_api import auth, errors
from edge_api.arguments import Args
from edge_api.json_body import read_json
from edge_api.services import current_services

V = TypeVar("V", bound=Callable[..., Any])

#: where the contract lives
PREFIX: Final = "/api/queue"
TITLE: Final = "Drawbridge edge"
OPENAPI: Final = "3.1.0"


class Parser(FlaskParser):
    """Reads bodies by our loader, and compares ``workerId`` before anything else in them."""

    # the schemas say what becomes of unknown keys
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {}  # noqa: RUF012  as declared there

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """Read the body, once its credential is known to be good."""
        args = cast(Args, schema)
        limit = args.body_max
        if args.body_holds is not None:
            limit += getattr(current_services().settings.queue, args.body_holds)
        body = read_json(req, limit=limit, optional=args.body_optional)
        if isinstance(body, dict):
            auth.check_worker_id(body.get("workerId"))
        return body

    def handle_error(self, error: ma.ValidationError, *_args: Any, **_kwargs: Any) -> Any:
        """Leave it to the one place that answers."""
        by_location = cast(dict[str, Any], error.messages)
        error.messages = next(iter(by_location.values()))
        raise error


class Blueprint(flask_smorest.Blueprint):
    """A group of routes that says who may call each of them."""

    ARGUMENTS_PARSER = Parser()

    def arguments(self, schema: type[Args], **kwargs: Any) -> Callable[[V], V]:
        """Declare what a route takes; webargs would make a schema anew for every request."""
        declare: Callable[[V], V] = super().arguments(
            schema(), required=not schema.body_optional, **kwargs
        )
        return declare

    @staticmethod
    def allow(*kinds: auth.Kind) -> Callable[[V], V]:
        """Declare who may call a route; without it nobody may."""

        def declare(view: V) -> V:
            schemes = [scheme for kind in kinds for scheme in auth.SCHEMES[kind]]
            docs = view.__dict__.setdefault("_apidoc", {}).setdefault("manual_doc", {})
            docs["security"] = [{scheme: []} for scheme in schemes]
            view.__dict__[auth.ALLOWED] = frozenset(kinds)
            return view

        return declare


class Api(flask_smorest.Api):
    """flask-smorest's extension with the contract's errors."""

    ERROR_SCHEMA = errors.ErrorSchema
    # each refusal is described by its status, and what is not described does not come
    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask, *, version: str) -> None:
        app.config.update(API_TITLE=TITLE, API_VERSION=version, OPENAPI_VERSION=OPENAPI)
        super().__init__(app)
        for name, scheme in auth.SECURITY_SCHEMES.items():
            self.spec.components.security_scheme(name, scheme)

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Answer what the frameworks refuse."""
        return errors.on_http(error)
