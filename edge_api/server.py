"""The only one to know gunicorn: threads, limits, how it starts, refuses and stops."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger

from broker import figures
from broker.errors import ConfigurationError
from edge_api import create_app
from edge_api.connections import EdgeWorker
from edge_api.processes import forget_figures
from edge_api.reception import URL_MAX
from edge_api.services import EXTENSION, Services
from edge_api.settings import EdgeSettings

logger = logging.getLogger(__name__)

#: how long calls that do not wait may take to end once the server stops
GRACE_S: Final = 10
#: connections held at once, where the system allows as many descriptors
CONNECTIONS_MAX: Final = 20_000
#: descriptors for all that is no connection: stores, files, a second one for a connection's answer
DESCRIPTORS: Final = 256
HEADERS_MAX: Final = 64
HEADER_MAX: Final = 8 * 1024


class EdgeLogger(Logger):
    """Leaves logging to the process: one format, one stream."""

    def setup(self, cfg: Config) -> None:  # noqa: ARG002  gunicorn's signature
        """Hand everything up to the root logger."""
        self.error_log.propagate = True
        self.error_log.setLevel(logging.INFO)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log what went wrong; of a peer that stalled there is no more to say than that."""
        if isinstance(sys.exc_info()[1], TimeoutError):
            self.error_log.info("a connection stalled", extra={"action": "stall"})
        else:
            super().exception(msg, *args, **kwargs)


class EdgeServer(BaseApplication):
    """One process that listens, and those that serve; each is replaced when it dies."""

    def __init__(
        self,
        settings: EdgeSettings,
        *,
        host: str,
        port: int,
        listening: Callable[[str], None],
        metrics: tuple[str, int] | None = None,
        processes: int = 1,
    ) -> None:
        """Serve on ``host`` and ``port`` (0: a free one); ``listening`` is told the URL once.

        ``metrics`` is where figures are served to whoever asks; they are those of all
        ``processes``.
        """
        self._processes = processes
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
            "workers": self._processes,
            "threads": threads,
            "worker_connections": _connections_max(threads),
            "backlog": 2048,
            # How long is EdgeWorker's business; this says that connections are kept at all.
            "keepalive": 1,
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
            "child_exit": lambda _arbiter, worker: figures.ended(worker.pid),
            "on_exit": lambda _arbiter: forget_figures(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Build the app, in the process that serves."""
        return create_app(self._settings)

    def _started(self, worker: EdgeWorker) -> None:
        if self._metrics is not None:
            self._serve_figures(*self._metrics)
        if worker.age == 1:  # the first one, and not its replacement
            host, port = worker.sockets[0].getsockname()[:2]
            self._listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def _serve_figures(self, host: str, port: int) -> None:
        try:
            figures.serve(host, port)
        except ConfigurationError as error:
            if self._processes == 1:
                raise
            # one of them tells the figures of all
            logger.info("%s", error, extra={"action": "start"})

    @staticmethod
    def _ended(_arbiter: Any, worker: EdgeWorker) -> None:
        app = cast(Flask | None, worker.wsgi)
        if app is not None:
            cast(Services, app.extensions[EXTENSION]).close()


def _connections_max(threads: int) -> int:
    """Return how many connections there may be, each a descriptor, beside a thread's stores."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    # A thread that serves may hold a connection to Redis and a file beside the caller's.
    return max(threads, min(CONNECTIONS_MAX, allowed - DESCRIPTORS - threads))
