"""The only one to know how a request is refused that never became one of the app's: in bytes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final
from uuid import uuid4

from gunicorn.http import errors

from edge_api.errors import code_of, detail

_REFUSALS: Final = (
    (errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (errors.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (errors.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (errors.ParseException, HTTPStatus.BAD_REQUEST),
)


def status_of(error: Exception) -> HTTPStatus:
    """Return the status for what gunicorn could not read; what is no such error is ours: 500."""
    found = (status for kind, status in _REFUSALS if isinstance(error, kind))
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR)


def refusal(status: HTTPStatus) -> bytes:
    """Write the whole answer, with the contract's body; the connection ends with it."""
    body = json.dumps(detail(code_of(status), status.description or status.phrase)).encode()
    retry = "Retry-After: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\n{retry}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        f"X-Request-Id: {uuid4().hex}\r\n\r\n"
    )
    return head.encode() + body
