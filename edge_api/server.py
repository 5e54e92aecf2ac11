"""The only one to know gunicorn: threads, limits, how it starts, refuses and stops."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, cast
from uuid import uuid4

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import errors as http_errors
from gunicorn.workers.gthread import ThreadWorker

from broker import figures
from edge_api import create_app
from edge_api.errors import code_of, detail
from edge_api.services import EXTENSION, Services
from edge_api.settings import EdgeSettings

logger = logging.getLogger(__name__)

#: how long calls that do not wait may take to end once the server stops
GRACE_S: Final = 10
#: how long a connection between two calls is kept; longer than workers pause
KEEPALIVE_S: Final = 75
CONNECTIONS_PER_THREAD: Final = 4
URL_MAX: Final = 4 * 1024
HEADERS_MAX: Final = 64
HEADER_MAX: Final = 8 * 1024

#: Linux only; elsewhere an answer leaves in two segments, undelayed thanks to TCP_NODELAY
_CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)
_REFUSALS: Final = (
    (http_errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (http_errors.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (http_errors.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (http_errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (http_errors.ParseException, HTTPStatus.BAD_REQUEST),
)


class EdgeWorker(ThreadWorker):
    """gunicorn's threads, with the contract's errors, and an end that nobody sleeps through."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Finish what is being answered; calls that wait are answered at once."""
        self._end_waits()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End now."""
        self._end_waits()
        super().handle_quit(sig, frame)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Let head and body of an answer leave together, in one segment."""
        if _CORK is None or any(name == "EXPECT" for name, _ in req.headers):
            return super().handle_request(req, conn)
        conn.sock.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
        try:
            return super().handle_request(req, conn)
        finally:
            with suppress(OSError):  # the caller is gone
                conn.sock.setsockopt(socket.IPPROTO_TCP, _CORK, 0)

    def handle_error(
        self,
        req: Any,  # noqa: ARG002  gunicorn's signature
        client: socket.socket,
        addr: Any,  # noqa: ARG002
        exc: Exception,
    ) -> None:
        """Answer what never became a request of the app."""
        status = next(
            (status for kind, status in _REFUSALS if isinstance(exc, kind)),
            HTTPStatus.INTERNAL_SERVER_ERROR,
        )
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("connection failed", exc_info=exc, extra={"action": "crash"})
        else:
            logger.info("refused: %s", type(exc).__name__, extra={"action": "refuse"})
        body = json.dumps(detail(code_of(status), status.description or status.phrase)).encode()
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"X-Content-Type-Options: nosniff\r\nX-Request-Id: {uuid4().hex}\r\n\r\n"
        )
        with suppress(OSError):
            client.sendall(head.encode() + body)

    def _end_waits(self) -> None:
        app = cast(Flask | None, self.wsgi)
        if app is not None:
            cast(Services, app.extensions[EXTENSION]).waiting.stop()


class EdgeLogger(Logger):
    """Leaves logging to the process: one format, one stream."""

    def setup(self, cfg: Config) -> None:  # noqa: ARG002  gunicorn's signature
        """Hand everything up to the root logger."""
        self.error_log.propagate = True
        self.error_log.setLevel(logging.INFO)


class EdgeServer(BaseApplication):
    """One process that listens, and one that serves and is replaced when it dies."""

    def __init__(
        self,
        settings: EdgeSettings,
        *,
        host: str,
        port: int,
        listening: Callable[[str], None],
        metrics: tuple[str, int] | None = None,
    ) -> None:
        """Serve on ``host`` and ``port`` (0: a free one); ``listening`` is told the URL once.

        ``metrics`` is where figures are served to whoever asks.
        """
        self._settings = settings
        self._bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._listening = listening
        self._metrics = metrics
        super().__init__()

    def load_config(self) -> None:
        """Configure gunicorn, from nowhere but here."""
        threads = self._settings.threads
        options = {
            "bind": self._bind,
            "worker_class": EdgeWorker,
            "workers": 1,
            "threads": threads,
            "worker_connections": threads * CONNECTIONS_PER_THREAD,
            "backlog": 1024,
            "keepalive": KEEPALIVE_S,
            "graceful_timeout": GRACE_S,
            "limit_request_line": URL_MAX,
            "limit_request_fields": HEADERS_MAX,
            "limit_request_field_size": HEADER_MAX,
            # Nobody may tell the app where it is mounted, or speak for another.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "control_socket_disable": True,
            "logger_class": EdgeLogger,
            "post_worker_init": self._started,
            "worker_exit": self._ended,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Build the app, in the process that serves."""
        return create_app(self._settings)

    def _started(self, worker: EdgeWorker) -> None:
        if self._metrics is not None:
            figures.serve(*self._metrics)
        if worker.age == 1:  # the first one, and not its replacement
            host, port = worker.sockets[0].getsockname()[:2]
            self._listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    @staticmethod
    def _ended(_arbiter: Any, worker: EdgeWorker) -> None:
        app = cast(Flask | None, worker.wsgi)
        if app is not None:
            cast(Services, app.extensions[EXTENSION]).close()
