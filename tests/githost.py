"""A git host on loopback under a name of its own: real TLS, real git over HTTP, a forge's API.

Reached as a host is: by its name over https, through a proxy that connects to it alone.
"""

import base64
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

HOST = "git.test"
GIT_TOKEN = "ghp_" + "t0ken" * 8
_API = "/api/v3/repos/"


@dataclass
class Asked:
    """One call of the forge's API."""

    method: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)


class GitHost:
    """Serves the bare repositories of a folder to who knows the token."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[Asked] = []
        self.pulls: list[dict[str, Any]] = []
        #: statuses to answer with instead, before ("POST 502") or after the work ("POST lost")
        self.trouble: list[str] = []
        #: the paths that were asked for with the token, and without
        self.known: list[str] = []
        self.strangers: list[str] = []
        self.certificate = root / "host.pem"
        _make_certificate(self.certificate, root / "host.key")
        self._server = _Server(self)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, root / "host.key")
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._proxy = _Proxy(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def way(self) -> dict[str, str]:
        """Return the variables that lead to it."""
        return {
            "HTTPS_PROXY": f"http://127.0.0.1:{self._proxy.port}",
            "SSL_CERT_FILE": str(self.certificate),
        }

    def __enter__(self) -> Self:
        self._thread.start()
        self._proxy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.stop()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, host: GitHost) -> None:
        self.host = host
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    timeout = 20

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = self.headers.get("Authorization") or ""
        if self.path.startswith(_API):
            if given != f"Bearer {GIT_TOKEN}":
                return self._say(401, {"message": "Bad credentials"})
            return self._api(body)
        wanted = base64.b64encode(f"x-access-token:{GIT_TOKEN}".encode()).decode()
        if given != f"Basic {wanted}":
            self.server.host.strangers.append(self.path)
            return self._send(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")
        self.server.host.known.append(self.path)
        return self._git(body)

    def _api(self, body: bytes) -> None:
        self.server.host.asked.append(
            Asked(self.command, self.path, json.loads(body) if body else {})
        )
        trouble = self.server.host.trouble.pop(0) if self._troubled() else ""
        if trouble.endswith("502"):
            return self._send(502, {}, b"<html>Bad gateway</html>")
        if self.command == "GET":
            return self._say(200, self.server.host.pulls)
        asked = self.server.host.asked[-1].body
        if any(pull["head"]["ref"] == asked["head"] for pull in self.server.host.pulls):
            errors = [{"message": "A pull request already exists"}]
            return self._say(422, {"message": "Validation Failed", "errors": errors})
        number = len(self.server.host.pulls) + 1
        url = f"https://{HOST}{self.path.removeprefix('/api/v3/repos')}/{number}"
        pull = {"html_url": url, "head": {"ref": asked["head"]}}
        self.server.host.pulls.append(pull)
        if trouble.endswith("lost"):
            self.close_connection = True
            return None
        return self._say(201, pull)

    def _troubled(self) -> bool:
        return bool(self.server.host.trouble) and self.server.host.trouble[0].startswith(
            self.command
        )

    def _git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_PROJECT_ROOT": str(self.server.host.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "somebody",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, capture_output=True,
            check=False,
        )  # fmt: skip
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().splitlines()]
        headers = dict(lines)
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, headers, answer)

    def _say(self, status: int, value: object) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Proxy:
    """Connects to one port, whoever is asked for; names are the client's affair."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def start(self) -> None:
        """Begin."""
        self._run(self._accept)

    def stop(self) -> None:
        """End every connection and wait for all threads."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for one in self._open:
            _shut(one)
        for thread in list(self._threads):
            thread.join()
        for one in self._open:
            one.close()

    def _run(self, what: Any, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(client)
            self._run(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := client.recv(1)):
                return
            head += byte
        if not head.startswith(f"CONNECT {HOST}:443 ".encode()):
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            _shut(client)
            return
        server = socket.create_connection(("127.0.0.1", self._target))
        self._open.append(server)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._run(_pipe, client, server)
        _pipe(server, client)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    _shut(target)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _make_certificate(certificate: Path, key: Path) -> None:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", f"/CN={HOST}", "-addext",
            f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
