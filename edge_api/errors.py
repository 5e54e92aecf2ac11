"""The only one to know how a refusal looks on the wire: one table of statuses, one body shape."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import marshmallow as ma
from flask import Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from broker import errors as queue_errors
from broker.errors import DrawbridgeError

logger = logging.getLogger(__name__)

#: fields named in one 422
FIELDS_MAX: Final = 20
CHALLENGE: Final = 'Bearer realm="drawbridge"'


class MalformedJson(DrawbridgeError):
    """The body is not the JSON that this route takes."""

    code = "malformed_json"


class MalformedForm(DrawbridgeError):
    """The body is not well-formed multipart/form-data."""

    code = "malformed_form"


class LengthRequired(DrawbridgeError):
    """A JSON body must be announced by Content-Length."""

    code = "length_required"


class BodyTooLarge(DrawbridgeError):
    """The body is larger than this route takes."""

    code = "too_large"


class UnsupportedMediaType(DrawbridgeError):
    """The body must be plain application/json."""

    code = "unsupported_media_type"


class InvalidStatusFilter(queue_errors.InvalidPayload):
    """The status to filter by is none that a job can have."""

    code = "invalid_status_filter"


class Unauthorized(queue_errors.AuthFailed):
    """An operator or producer credential is needed: Authorization: Bearer <token>."""

    code = "unauthorized"


class RateLimited(DrawbridgeError):
    """Too many calls; ask again later."""

    code = "rate_limited"

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


#: the status of each refusal; a subclass answers as its nearest ancestor here
STATUS: Final[Mapping[type[DrawbridgeError], int]] = MappingProxyType(
    {
        MalformedJson: 400,
        MalformedForm: 400,
        queue_errors.AuthFailed: 401,
        queue_errors.NotAuthorized: 403,
        queue_errors.JobNotFound: 404,
        queue_errors.ArtifactNotFound: 404,
        queue_errors.TokenNotFound: 404,
        queue_errors.TokenConflict: 409,
        queue_errors.JobStateConflict: 409,
        queue_errors.OwnershipMismatch: 409,
        queue_errors.ArtifactConflict: 409,
        queue_errors.ArtifactJobMismatch: 409,
        LengthRequired: 411,
        BodyTooLarge: 413,
        queue_errors.ArtifactTooLarge: 413,
        queue_errors.LogFull: 413,
        UnsupportedMediaType: 415,
        queue_errors.InvalidPayload: 422,
        RateLimited: 429,
        DrawbridgeError: 500,
        queue_errors.Unavailable: 503,
        queue_errors.StorageFull: 507,
    }
)


#: where the phrase is not the contract's word, or changes with the version of Python
_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {413: BodyTooLarge.code, 414: "uri_too_long", 416: "range_not_satisfiable"}
)


class DetailSchema(ma.Schema):
    """What went wrong; ``errors`` names up to 20 fields of a body that does not fit."""

    class Meta:
        """A newer edge may say more."""

        unknown = ma.EXCLUDE

    code = ma.fields.String(required=True)
    message = ma.fields.String(required=True)
    errors = ma.fields.Dict(
        keys=ma.fields.String(), values=ma.fields.List(ma.fields.String()), required=False
    )


class ErrorSchema(ma.Schema):
    """The one shape of every refusal."""

    class Meta:
        """A newer edge may say more."""

        unknown = ma.EXCLUDE

    detail = ma.fields.Nested(DetailSchema, required=True)


def status_of(error: DrawbridgeError) -> int:
    """Return the status a refusal is answered with."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def code_of(status: HTTPStatus) -> str:
    """Name a refusal that is HTTP's own, such as ``not_found`` or ``method_not_allowed``."""
    return _NAMES.get(status) or status.phrase.lower().replace(" ", "_").replace("-", "_")


def detail(code: str, message: str, **more: Any) -> dict[str, Any]:
    """Return the body of a refusal."""
    return {"detail": {"code": code, "message": message, **more}}


def answer(status: int, code: str, message: str, **more: Any) -> Response:
    """Build the answer that tells of a refusal."""
    response = jsonify(detail(code, message, **more))
    response.status_code = status
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = CHALLENGE
    return response


def on_refusal(error: DrawbridgeError) -> Response:
    """Answer a refusal of the queue or of the edge."""
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return on_crash(error)
    response = answer(status, error.code, error.message)
    if isinstance(error, queue_errors.Unavailable | RateLimited):
        # A fleet that was refused at once shall not come back at once.
        response.headers["Retry-After"] = str(error.retry_after_s + random.randrange(3))  # noqa: S311
    return response


def on_invalid(error: ma.ValidationError) -> Response:
    """Answer a body or query that does not fit its schema, without repeating what it held."""
    fields: dict[str, list[str]] = {}
    for path, message in _flat(error.messages):
        if path not in fields and len(fields) == FIELDS_MAX:
            break
        fields.setdefault(path, []).append(message)
    refusal = queue_errors.InvalidPayload
    return answer(422, refusal.code, refusal().message, errors=fields)


def on_http(error: HTTPException) -> Response:
    """Answer what Flask and Werkzeug refuse by themselves: unknown routes, methods, ranges."""
    status = HTTPStatus(error.code or 500)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return on_crash(getattr(error, "original_exception", None) or error)
    response = answer(status, code_of(status), status.description or status.phrase)
    for name, value in error.get_headers(request.environ):
        if name.lower() not in {"content-type", "content-length"}:
            response.headers[name] = value
    if isinstance(error, MethodNotAllowed):
        _correct_allow(response)
    return response


def _correct_allow(response: Response) -> None:
    """Name the methods of this path alone: ``claim`` fits the pattern of a job's id too."""
    rules = [rule for rule in current_app.url_map.iter_rules() if rule.rule == request.path]
    methods = {method for rule in rules for method in rule.methods or ()}
    if methods:
        response.headers["Allow"] = ", ".join(sorted(methods))


def on_crash(error: BaseException) -> Response:
    """Answer a mistake of ours: everything to the log, nothing to the client."""
    logger.error("request failed", exc_info=error, extra={"action": "crash"})
    return answer(500, DrawbridgeError.code, "Something went wrong on our side; it was logged.")


def _flat(messages: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Flatten marshmallow's nested messages to (dotted path, sentence)."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            step = () if key == "_schema" else (str(key),)
            yield from _flat(inner, path + step)
    elif isinstance(messages, list):
        for inner in messages:
            yield from _flat(inner, path)
    else:
        yield ".".join(path) or "body", str(messages)
