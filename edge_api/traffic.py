"""The only one to know what every answer carries, and what is written down about it."""

from __future__ import annotations

import json
import logging
import re
import select
import socket
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from flask import Response, g, request

from edge_api import figures
from edge_api.services import current_services

logger = logging.getLogger(__name__)

HEADERS: Final = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
)
#: how far a worker's orders have got: when it knows less, it has some to read
CURSOR: Final = "Bridge-Control-Cursor"
REQUEST_ID: Final = "X-Request-Id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JOB_ID: Final = re.compile(r"[0-9a-f-]{36}")
#: what every log record has; anything else came by ``extra``
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def begin() -> None:
    """Name the request: by the caller's own word when that is harmless."""
    g.began = time.monotonic()
    named = request.headers.get(REQUEST_ID, "")
    g.request_id = named if _REQUEST_ID.fullmatch(named) else uuid.uuid4().hex


def finish(response: Response) -> Response:
    """Put on every answer what all of them carry, and write one line about it."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[REQUEST_ID] = g.request_id
    caller = g.get("principal")
    seconds = time.monotonic() - g.began
    figures.answered(
        method=request.method,
        route=None if request.url_rule is None else request.url_rule.rule,
        status=response.status_code,
        seconds=seconds,
    )
    if caller is not None and caller.worker_id is not None:
        told = current_services().presence.told(caller.worker_id)
        if told is not None:
            response.headers[CURSOR] = str(told.cursor)
    logger.info(
        "%s %s",
        request.method,
        # The rule and not the path: what a stranger typed there is nobody's business.
        request.url_rule or "-",
        extra={
            "action": "request",
            "status": response.status_code,
            "seconds": round(seconds, 4),
            "request": g.request_id,
            "token": caller and caller.id,
            "worker": caller and caller.worker_id,
            "job": _job(),
        },
    )
    return response


def _job() -> str | None:
    """Name the job of a route; what cannot be an id may be a token that somebody put there."""
    named = str((request.view_args or {}).get("job_id"))
    return named if _JOB_ID.fullmatch(named) else None


def caller_left(environ: Mapping[str, Any]) -> bool:
    """Tell whether who made a request hung up meanwhile; a server that hides its socket says no."""
    sock = environ.get("gunicorn.socket")
    if not isinstance(sock, socket.socket):
        return False
    poll = select.poll()
    try:
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0)) and not sock.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True


class JsonFormatter(logging.Formatter):
    """One line of ASCII JSON a record: no value can forge a line, nor colour a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Write it."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({k: v for k, v in line.items() if v is not None}, default=str)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Make this process log JSON lines, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
