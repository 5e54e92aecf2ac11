"""Attacks on the edge's time: calls that hang, sockets that trickle, bodies that never end."""

import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from edge_api.settings import STREAMS
from tests.bench.sockets import Polls, Trickle, beat, request
from tests.contract.edge.served import Served
from tests.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOARD = 500
SLOW = 200
BEATS = 1000
LONG_S = 60
PACE_S = 0.05


def running(served: Served) -> str:
    """Return a job that w1 holds for an hour."""
    served.call("POST", "/api/queue/jobs", {"type": "t"})
    job: str = served.claim(leaseSeconds=3600)["id"]
    return job


def beats(served: Served, job: str, count: int) -> int:
    """Send heartbeats, each on a connection of its own, and count those that were answered."""
    body = {"workerId": "w1", "leaseSeconds": 3600}
    data = request(f"/jobs/{job}/heartbeat", body, token=served.worker)

    def one(_: int) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", served.port), LONG_S)) as sock:
                beat(sock, data)
        except (OSError, ValueError):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(one, range(count)))


@pytest.mark.attack(75, 76)
def test_heartbeats_pass_while_polls_hang_and_sockets_drip(
    start_served: Callable[..., Served],
) -> None:
    served = start_served()
    job = running(served)
    with (
        Polls(served.port, served.worker, HOARD) as polls,
        Trickle(served.port, served.worker, SLOW),
    ):
        # Half of the trickling ones are heads, half bodies; no thread has seen any of them.
        until(lambda: served.serving.num_threads() > HOARD / 2, LONG_S)
        assert beats(served, job, BEATS) >= 0.999 * BEATS
        ended = served.call("POST", f"/api/queue/jobs/{job}/complete", {"workerId": "w1"},
                            token=served.worker)  # fmt: skip
        assert ended[0] == 200
        # The hoard waits, and whoever could not was told when to come back.
        assert set(polls.answers()) <= {"503"}
        assert served.serving.num_threads() < HOARD + 100


@pytest.mark.attack(76)
def test_polls_beyond_the_places_are_told_to_come_back(served: Served) -> None:
    job = running(served)
    # 60 threads less the reserve of 38
    with Polls(served.port, served.worker, 100) as polls:
        until(lambda: polls.open() == 60 - 38, LONG_S)
        assert polls.answers() == {"503": 100 - 22}
        assert beats(served, job, 50) == 50


def test_who_hangs_up_makes_place_for_another(start_served: Callable[..., Served]) -> None:
    served = start_served("--threads", "40")
    for _ in range(3):
        # two places; each time the two before have to be noticed as gone
        with Polls(served.port, served.worker, 2) as polls:
            until(lambda: polls.open() == 2 or polls.renew(), LONG_S)


def test_bodies_that_never_end_take_few_threads(served: Served) -> None:
    job = running(served)
    before = served.serving.num_threads()
    head = (
        f"POST /api/queue/jobs/{job}/complete HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {served.worker}\r\nContent-Type: application/json\r\n"
        "Content-Length: 200000\r\n\r\n"
    ).encode()
    sockets = [socket.create_connection(("127.0.0.1", served.port), LONG_S) for _ in range(100)]
    try:
        for sock in sockets:
            sock.sendall(head)
        refused = until(lambda: len(ready(sockets)) >= 100 - STREAMS and ready(sockets), LONG_S)
        assert {sock.recv(12) for sock in refused} == {b"HTTP/1.1 503"}
        assert served.serving.num_threads() <= before + STREAMS + 8
        assert beats(served, job, 50) == 50
    finally:
        for sock in sockets:
            sock.close()


def ready(sockets: list[socket.socket]) -> list[socket.socket]:
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(0)]  # type: ignore[misc]


def test_a_stranger_who_leaves_slowly_holds_up_nobody(served: Served) -> None:
    job = running(served)
    sockets = [socket.create_connection(("127.0.0.1", served.port), LONG_S) for _ in range(50)]
    try:
        for sock in sockets:
            sock.sendall(b"nonsense\r\n\r\n")  # refused; and the sender does not hang up
        assert beats(served, job, 50) == 50
        # the end of the connection comes by itself
        for sock in sockets:
            while sock.recv(4096):
                pass
    finally:
        for sock in sockets:
            sock.close()


def test_a_restart_with_polls_open_loses_no_answer(served: Served) -> None:
    job = running(served)
    old = served.serving
    with Polls(served.port, served.worker, 20) as polls:
        until(lambda: old.num_threads() > 20, LONG_S)
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            counted = pool.submit(_beat_until, served, job, ended)
            os.kill(served.process.pid, signal.SIGHUP)
            until(lambda: not old.is_running(), LONG_S)
            ended.set()
            sent, answered = counted.result()
        assert polls.answers() == {"200": 20}
        assert sent == answered > 0
    assert served.call("GET", "/healthz")[0] == 200


def _beat_until(served: Served, job: str, ended: threading.Event) -> tuple[int, int]:
    sent = answered = 0
    # as fast as one may: an edge refuses what is more than its calls a second
    while not ended.wait(PACE_S):
        sent += 1
        answered += beats(served, job, 1)
    return sent, answered
