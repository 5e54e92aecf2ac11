"""A scripted Responses API on loopback: the only place that knows how its answers are served.

`codex exec` asks `POST /v1/responses` once a turn and runs the tools the answer names. This server
answers from a script instead of a model, so that the real CLI edits real files with no account and
no network.

    python -m deploy.demo.model_server --script edit        prints {"url": ..., "pid": ...}
    with ModelServer(SCRIPTS["edit"]) as url: ...           the same inside a test
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from deploy.demo.scripts import JSON, SCRIPTS, Script, Wait, answer, scripts

REQUEST_LIMIT_BYTES: Final = 32 * 1024 * 1024
SOCKET_TIMEOUT_S: Final = 30.0
#: Well under Codex's own limit for a silent stream, and short enough to notice a client that left.
DRIP_S: Final = 0.2


class ModelServer:
    """The server on a free loopback port; start and stop are idempotent."""

    def __init__(self, script: Script, *, port: int = 0, log: Path | None = None) -> None:
        self.script = script
        #: Every request body in the order of arrival, for tests to look at.
        self.requests: list[JSON] = []
        self._log = log
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._http = _Http(port, self)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def start(self) -> str:
        """Serve from a thread and return the base URL."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._http.serve_forever,
                kwargs={"poll_interval": 0.05},
                name="model-server",
                daemon=True,
            )
            self._thread.start()
        return self.url

    def stop(self) -> None:
        """End held-back answers, then the server."""
        self._stopping.set()
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def record(self, method: str, path: str, body: JSON) -> None:
        """Keep a request, and append it to the log file when there is one."""
        line = json.dumps({"at": time.time(), "method": method, "path": path, "body": body})
        with self._lock:
            self.requests.append(body)
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")

    def hold(self, seconds: float) -> Iterator[None]:
        """Yield every moment until the time is over or the server stops."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(DRIP_S, left)):
                return
            yield


class _Http(ThreadingHTTPServer):
    """One thread a request, none of which outlives the process."""

    daemon_threads = True

    def __init__(self, port: int, model: ModelServer) -> None:
        self.model = model
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One request; a client that says nothing or reads nothing is let go."""

    server: _Http
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: requests are recorded."""

    def do_GET(self) -> None:
        """List the one model there is."""
        self.server.model.record("GET", self.path, {})
        if self.path.split("?")[0] != "/v1/models":
            return self._json(404, {"error": {"message": "no such path"}})
        model = {"id": "scripted", "object": "model", "created": 0, "owned_by": "script"}
        return self._json(200, {"object": "list", "data": [model], "models": []})

    def do_POST(self) -> None:
        """Answer a turn as server-sent events."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > REQUEST_LIMIT_BYTES:
            return self._json(413, {"error": {"message": "too large"}})
        raw = self.rfile.read(length)
        if self.path.split("?")[0] != "/v1/responses":
            return self._json(404, {"error": {"message": "no such path"}})
        try:
            request = json.loads(raw)
        except ValueError:
            return self._json(400, {"error": {"message": "the body is not JSON"}})
        if not isinstance(request, dict):
            return self._json(400, {"error": {"message": "the body is not an object"}})
        self.server.model.record("POST", self.path, request)
        return self._stream(request)

    def _stream(self, request: JSON) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for event in answer(self.server.model.script, request):
                if isinstance(event, Wait):
                    for _ in self.server.model.hold(event.seconds):
                        self._write(": still thinking\n\n")
                else:
                    self._write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
        except OSError:
            # Codex was stopped in mid-answer; there is nobody left to tell.
            return

    def _write(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _json(self, status: int, body: JSON) -> None:
        self.close_connection = True
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(payload)


def main(argv: list[str] | None = None, out: IO[str] = sys.stdout) -> int:
    """Serve until SIGTERM or Ctrl-C; the one line on stdout says where."""
    parser = argparse.ArgumentParser(description="A scripted Responses API on loopback.")
    parser.add_argument("--script", choices=sorted(SCRIPTS), default="edit")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long slow and sleep take")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append every request to this file, as JSON lines")
    options = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    script = scripts(options.seconds)[options.script]
    server = ModelServer(script, port=options.port, log=options.log)
    with server as url:
        print(json.dumps({"url": url, "pid": os.getpid()}), file=out, flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
