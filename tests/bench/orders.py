"""How soon one of many waiting workers hears an order, and what the waiting takes of the edge."""

from __future__ import annotations

import json
import random
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psutil

from broker.policy import Policy
from tests.bench.measures import cuts_ms
from tests.bench.rig import HttpClient, Refused, Rig
from tests.bench.sockets import PREFIX, request
from tests.bench.waits import WAIT_S, parked
from tests.processes import until

#: calls that start at once
CROWD: Final = 25
#: before a call that was refused is made again
AGAIN_S: Final = 2.0


def measure(made: Rig, *, crowds: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Let workers wait, half of them for orders and half for jobs; then drain some, one by one."""
    # a worker alone has no crowd of either sort
    return [row for workers in crowds if workers > 3 for row in _run(made, workers, rounds)]


class _Waiting:
    """One worker's call that waits, on a socket of its own, asked again when it is answered."""

    def __init__(self, made: Rig, worker_id: str, *, works: bool) -> None:
        """Wait for orders when it ``works``, else for jobs, as the real worker does."""
        now = made.queue.clock.now()
        policy = Policy()
        _, self._token = made.credentials.create(
            "worker", worker_id=worker_id, policy=policy, now=now
        )
        self._url = urlsplit(made.url)
        self.worker_id = worker_id
        self.works = works
        self.cursor = 0
        self.heard = 0.0

    def connect(self) -> None:
        """Have a line of one's own; one on which nobody asks for 30 s is ended with a 408."""
        self.sock = socket.create_connection((self._url.hostname, self._url.port), timeout=60)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """Begin to wait."""
        if not self.works:
            body = {"workerId": self.worker_id, "leaseSeconds": 60, "waitSeconds": WAIT_S}
            self.sock.sendall(request("/jobs/claim", body, token=self._token))
            return
        path = f"{PREFIX}/workers/control?instanceId=i&cursor={self.cursor}&waitSeconds={WAIT_S}"
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        self.sock.sendall(head.encode())

    def take(self) -> None:
        """Read the answer; note when one came that was an order's."""
        came = time.perf_counter()
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._some()
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._some()
        if not head.startswith(b"HTTP/1.1 200"):
            raise Refused(head[9:12].decode())
        told = head.lower().partition(b"bridge-control-cursor:")[2].partition(b"\r\n")[0].strip()
        cursor = json.loads(body)["cursor"] if self.works else int(told or 0)
        if cursor > self.cursor:
            self.cursor, self.heard = cursor, came

    def _some(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise OSError("cut short")
        return data


class _Crowd:
    """Workers that wait, attended by one thread."""

    def __init__(self, made: Rig, count: int) -> None:
        self.workers = [
            _Waiting(made, f"orders-{count}-{at}", works=at % 2 == 0) for at in range(count)
        ]
        #: calls for which there was no place, by status
        self.refused: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._attend, daemon=True)

    def __enter__(self) -> Self:
        for at, one in enumerate(self.workers):
            one.connect()
            one.ask()
            if at % CROWD == CROWD - 1:
                time.sleep(0.5)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for one in self.workers:
            one.sock.close()

    def _attend(self) -> None:
        again: list[tuple[float, _Waiting]] = []
        with selectors.DefaultSelector() as selector:
            for one in self.workers:
                selector.register(one.sock, selectors.EVENT_READ, one)
            while not self._stopping.is_set():
                for key, _ in selector.select(0.2):
                    try:
                        key.data.take()
                        key.data.ask()
                    except (Refused, OSError) as no:
                        self.refused[str(no)] += 1
                        selector.unregister(key.fileobj)
                        key.data.sock.close()
                        again.append((time.monotonic() + AGAIN_S, key.data))
                while again and again[0][0] <= time.monotonic():
                    # as a worker does: anew, a little later
                    _, one = again.pop(0)
                    try:
                        one.connect()
                        one.ask()
                    except OSError as no:
                        self.refused[str(no)] += 1
                        again.append((time.monotonic() + AGAIN_S, one))
                    else:
                        selector.register(one.sock, selectors.EVENT_READ, one)


def _run(made: Rig, workers: int, rounds: int) -> list[dict[str, Any]]:
    before = _memory_mib(made)
    now = made.queue.clock.now()
    _, token = made.credentials.create("operator", worker_id=None, policy=Policy(), now=now)
    operator = HttpClient(made.url, token, "operator")
    with _Crowd(made, workers) as crowd:
        until(
            parked(made, workers), 120,
            lambda: f"{workers} workers wait; refused {crowd.refused}",
        )  # fmt: skip
        held = {"edge MiB before": before, "edge MiB": _memory_mib(made)}
        rows = []
        for works, word in ((True, "orders"), (False, "jobs")):
            told = _some_of(crowd.workers, rounds, works=works)
            taken = [_order(operator, one, crowd.refused) for one in told]
            rows.append({"workers": workers, "waiting for": word} | cuts_ms(taken) | held)
        operator.close()
        return [row | {"refused": str(dict(crowd.refused))} for row in rows]


def _some_of(crowd: Sequence[_Waiting], rounds: int, *, works: bool) -> list[_Waiting]:
    """Choose who is told; each of them once, for a held worker's claim does not wait again."""
    of_kind = [one for one in crowd if one.works == works]
    return random.Random(1).sample(of_kind, min(rounds, len(of_kind)))


def _order(operator: HttpClient, told: _Waiting, refused: Counter[str]) -> float:
    """Order one worker to drain; return the seconds until it heard so."""
    told.heard = 0.0
    sent = time.perf_counter()
    operator.post(f"/workers/{told.worker_id}/drain", {})
    until(lambda: told.heard, 60, lambda: f"the worker hears the order; refused {refused}")
    return told.heard - sent


def _memory_mib(made: Rig) -> float:
    """Return what the edge's processes hold."""
    edge = psutil.Process(made.pids["edge"])
    held = (one.memory_info().rss for one in (edge, *edge.children(recursive=True)))
    return float(sum(held)) / 2**20
