"""`drawbridge edge` as a process, for tests that speak to it over real sockets."""

import http.client
import json
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from tests.processes import Process

COMMAND = Path(sys.executable).with_name("drawbridge")


@dataclass
class Served:
    """An edge that listens, and its tokens."""

    process: Process
    port: int
    operator: str
    worker: str
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection that is closed with the test."""
        self.connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.connections[-1]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> tuple[int, Any]:
        """Make a call and return its status and its JSON."""
        connection = connection or self.connect()
        headers = {"Authorization": f"Bearer {token or self.operator}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def claim(self, **more: Any) -> Any:
        body = {"workerId": "w1", "leaseSeconds": 60, **more}
        return self.call("POST", "/api/queue/jobs/claim", body, token=self.worker)[1]["job"]

    def raw(self, data: bytes) -> tuple[bytes, bytes]:
        """Send bytes and return head and body of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.sendall(data)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, body

    def close(self) -> None:
        """Close what was opened."""
        for connection in self.connections:
            connection.close()

    @property
    def serving(self) -> psutil.Process:
        """The process that answers, below the one that watches it."""
        (child,) = psutil.Process(self.process.pid).children()
        return child


StartProcess = Callable[..., Process]


def start_edge(
    process: StartProcess, environment: Mapping[str, str], *options: str, worker: str = "w1"
) -> Served:
    """Start an edge on the stores of its environment, with an operator and a worker."""
    ledger = Ledger(environment["DRAWBRIDGE_DATABASE_URL"])
    credentials = Credentials(ledger)
    now = datetime.now(UTC)
    _, operator = credentials.create("operator", now=now)
    _, token = credentials.create("worker", worker_id=worker, now=now)
    ledger.close()
    argv = [COMMAND, "edge", "--port", "0", *options, "--json"]
    started = process(argv, env=environment, stdout_apart=True)
    url = json.loads(started.wait_for(r'^\{"url": "http://127.0.0.1:\d+"\}$', 60)[0])["url"]
    return Served(started, int(url.rpartition(":")[2]), operator, token)
