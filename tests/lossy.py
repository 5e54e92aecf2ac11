"""A proxy that lets a worker down: by path, in ways that real networks have."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

import requests

PORTAL = b"<html><body>Welcome to the hotel. Please log in.</body></html>"
_HOPS = {"connection", "transfer-encoding", "content-length", "host", "date", "server"}


@dataclass(frozen=True)
class Fate:
    """What becomes of a call: whether it reaches the edge, and what comes back in its place."""

    forwarded: bool
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    #: what share of the true answer comes through before the line is cut
    share: float = 1.0


DROPPED = Fate(forwarded=True, share=0.0)
TRUNCATED = Fate(forwarded=True, share=0.5)
CAPTIVE = Fate(forwarded=False, status=200, body=PORTAL, headers={"Content-Type": "text/html"})
BUSY = Fate(forwarded=False, status=503, body=PORTAL)
BUSY_FOR_A_SECOND = Fate(forwarded=False, status=429, body=b"{}", headers={"Retry-After": "1"})


def moved(to: str) -> Fate:
    """Return a redirect to another host."""
    return Fate(forwarded=False, status=307, headers={"Location": to})


class Lossy:
    """Stands before an edge, or is the proxy a worker was told to take."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.calls: list[str] = []
        #: says what becomes of the n-th call that ends like this; None: nothing bad
        self.fate: Callable[[str, int], Fate | None] = lambda _verb, _n: None
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def judge(self, path: str) -> Fate | None:
        """Note a call and return its fate."""
        verb = path.partition("?")[0].rpartition("/")[2]
        with self._lock:
            self.calls.append(verb)
            self._times[verb] += 1
            return self.fate(verb, self._times[verb])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, lossy: Lossy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lossy = lossy

    def handle_error(self, *_: object) -> None:
        """Say nothing: workers are killed here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._relay()

    def do_POST(self) -> None:
        self._relay()

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # a proxy is asked for whole URLs
        parts = urlsplit(self.path)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        fate = self.server.lossy.judge(path)
        if fate is not None and not fate.forwarded:
            self._reply(fate.status, fate.body, fate.headers)
            return
        answer = self._ask(path, body)
        if answer is None:
            self._reply(502, PORTAL, {})
            return
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOPS}
        self._reply(answer.status_code, answer.content, headers, fate.share if fate else 1.0)

    def _ask(self, path: str, body: bytes) -> requests.Response | None:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOPS}
        with requests.Session() as session:
            session.trust_env = False
            try:
                return session.request(
                    self.command, self.server.lossy.upstream + path, data=body, headers=headers,
                    timeout=60, allow_redirects=False,
                )  # fmt: skip
            except requests.RequestException:
                return None

    def _reply(self, status: int, body: bytes, headers: dict[str, str], share: float = 1.0) -> None:
        if share == 0.0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: int(len(body) * share)])
        if share < 1.0:
            self.close_connection = True
