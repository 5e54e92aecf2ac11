"""What a supervisor and a monitor may ask of this machine: /healthz and /metrics, on one port."""

import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from remote_worker.board import Board
from remote_worker.errors import Misconfigured

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Figures(Collector):
    """The daemon's figures, read when somebody asks."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        """Yield them as they are now."""
        now = self._board.look()
        for name, what, value in (
            ("healthy", "1 while nothing keeps this worker from working", not now.troubles),
            ("slots", "jobs it may run at once", now.slots),
            ("jobs", "jobs it runs", len(now.jobs)),
            ("claim_silence_seconds", "how long an answer to a claim is overdue", now.deaf_s),
            (
                "heartbeat_age_seconds",
                "since the last heartbeat that renewed, of the job where it is longest",
                max((job.beat_s or 0.0 for job in now.jobs), default=0.0),
            ),
        ):
            yield GaugeMetricFamily(f"drawbridge_worker_{name}", what, value=float(value))
        yield CounterMetricFamily(
            "drawbridge_worker_claims", "claims the edge answered", value=now.claims
        )
        ended = CounterMetricFamily(
            "drawbridge_worker_jobs_ended", "jobs by how they ended here", labels=["ending"]
        )
        for ending, number in now.endings.items():
            ended.add_metric([ending], number)
        yield ended


class Health:
    """The server, on this machine's own address unless told otherwise."""

    def __init__(self, board: Board, *, host: str, port: int) -> None:
        """Listen; Misconfigured when that cannot be."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Figures(board))
        try:
            self._server = _Server((host, port), board, registry)
        except OSError as error:
            raise Misconfigured(f"--health-port {port}: {error.strerror}") from None
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], board: Board, registry: CollectorRegistry) -> None:
        super().__init__(address, _Handler)
        self.board = board
        self.registry = registry

    def handle_error(self, *_: object) -> None:
        """Leave whoever hung up alone."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def log_message(self, *_: object) -> None:
        """Say nothing: who asks every few seconds is no news."""

    def do_GET(self) -> None:
        """Answer."""
        match self.path:
            case "/healthz":
                now = self.server.board.look()
                body = {"status": "failing" if now.troubles else "ok", "state": now.state,
                        "jobs": len(now.jobs), "troubles": now.troubles}  # fmt: skip
                status = 503 if now.troubles else 200
                self._answer(status, "application/json", json.dumps(body).encode())
            case "/metrics":
                self._answer(200, _TEXT, generate_latest(self.server.registry))
            case _:
                self._answer(404, "application/json", b'{"status": "not found"}')

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        """Send it."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
