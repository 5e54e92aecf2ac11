"""Raw clients for loads that no HTTP library makes: calls that hang, and calls that trickle."""

import json
import select
import selectors
import socket
import threading
from collections import Counter
from typing import Any, Final, Self

DRIP_S: Final = 0.5
PREFIX: Final = "/api/queue"


def request(path: str, body: Any, *, token: str, close: bool = False) -> bytes:
    """Return a whole request."""
    data = json.dumps(body).encode()
    head = (
        f"POST {PREFIX}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + data


def beat(sock: socket.socket, data: bytes) -> Any:
    """Send a request and return the JSON of a 2xx answer.

    Raises:
        ValueError: another status, or no whole answer.
    """
    sock.sendall(data)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _some(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 2"):
        raise ValueError(head[:64])
    if b"chunked" in head.lower():
        while not body.endswith(b"0\r\n\r\n"):
            body += _some(sock)
        return None
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _some(sock)
    return json.loads(body)


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ValueError("cut short")
    return data


class Polls:
    """Claims that hang."""

    def __init__(self, port: int, token: str, count: int, *, wait_s: int = 50) -> None:
        body = {"workerId": "w1", "leaseSeconds": 60, "waitSeconds": wait_s}
        self._data = request("/jobs/claim", body, token=token)
        self._port = port
        self._count = count
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        for _ in range(self._count):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            sock.sendall(self._data)
            self._sockets.append(sock)
        return self

    def settle(self, quiet_s: float = 3.0) -> None:
        """Wait until the refused ones were refused: nothing has come back for a while."""
        known = -1
        while known != (now := len(self._readable())):
            known = now
            threading.Event().wait(quiet_s)

    def open(self) -> int:
        """Count those that wait."""
        return self._count - len(self._readable())

    def answers(self) -> dict[str, int]:
        """Count the answers that have come, by their status."""
        lines = [sock.recv(12, socket.MSG_PEEK)[9:].decode() for sock in self._readable()]
        return dict(Counter(lines))

    def renew(self) -> bool:
        """Ask again for those that were refused; False, for a loop that goes on."""
        for sock in self._readable():
            self._sockets.remove(sock)
            sock.close()
            fresh = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            fresh.sendall(self._data)
            self._sockets.append(fresh)
        return False

    def answered(self) -> int:
        """Count those that got a whole 200, now that the server has gone."""
        good = 0
        for sock in self._readable():
            try:
                good += sock.recv(65536).startswith(b"HTTP/1.1 200")
            except OSError:
                continue
        return good

    def _readable(self) -> list[socket.socket]:
        with selectors.DefaultSelector() as selector:
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select(0)]  # type: ignore[misc]

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


class Trickle:
    """Sockets that send a byte now and then: half of them of a head, half of a body."""

    def __init__(self, port: int, token: str, count: int) -> None:
        whole = request("/jobs/claim", {"workerId": "w1", "leaseSeconds": 60}, token=token)
        cut = whole.index(b"\r\n\r\n") + 10
        self._starts = (whole[:30], whole[:cut])
        self._port = port
        self._count = count
        self._sockets: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)

    def __enter__(self) -> Self:
        for at in range(self._count):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            sock.sendall(self._starts[at % 2])
            self._sockets.append(sock)
        self._thread.start()
        return self

    def _drip(self) -> None:
        while not self._ended.wait(DRIP_S):
            for sock in self._sockets:
                try:
                    # what was answered or cut off is opened no more
                    if not select.select([sock], [], [], 0)[0]:
                        sock.send(b"x")
                except OSError:
                    continue

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()
