"""Which connections go on after an answer, by which thread, whatever the machine does meanwhile."""

import socket
from itertools import count
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.workers.gthread import ThreadWorker

from edge_api.connection import Connection
from edge_api.connections import CLOSELY_S, EdgeWorker
from edge_api.reception import comes_whole

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    "body,wanted,goes_on",
    [(b"x" * 9, True, True), (b"x" * 9, False, True), (b"x" * 5, False, False)],
    ids=["read", "here and unread", "still coming"],
)
def test_a_thread_that_had_to_wait_ends_no_connection_whose_request_was_here(
    monkeypatch: pytest.MonkeyPatch, *, body: bytes, wanted: bool, goes_on: bool
) -> None:
    ours, theirs = socket.socketpair()
    worker = EdgeWorker.__new__(EdgeWorker)
    with ours, theirs, monkeypatch.context() as patched:
        ours.settimeout(5)
        theirs.sendall(HEAD + body)
        conn: Any = Connection.__new__(Connection)
        conn.sock, conn.parser = ours, get_parser(Config(), ours, ("", 0))
        request = next(conn.parser)
        if wanted:
            request.body.read()
        worker._streams = {} if goes_on else {conn: 0.0}
        # between any two looks at the clock the machine does something else for ten seconds
        clock = count(0.0, 10.0)
        patched.setattr("time.monotonic", lambda: next(clock))
        assert worker._keepalive_after(conn, keepalive=True) is goes_on
        assert worker._keepalive_after(conn, keepalive=False) is False


@pytest.mark.parametrize(
    "follows,whole,alive,ahead,served",
    [
        (True, 2, True, b"", 3),
        (True, 2, False, b"", 1),
        (True, 0, True, b"", 1),
        (False, 2, True, b"", 1),
        (True, 2, True, b"POST", 1),
    ],
    ids=["closely", "while it stops", "in parts", "seldom", "sent ahead"],
)
def test_a_thread_goes_on_with_what_follows_closely_and_is_here(
    monkeypatch: pytest.MonkeyPatch,
    *,
    follows: bool,
    whole: int,
    alive: bool,
    ahead: bytes,
    served: int,
) -> None:
    ours, theirs = socket.socketpair()
    worker = EdgeWorker.__new__(EdgeWorker)
    worker.alive, worker._streams = alive, {}
    request = HEAD + b"x" * 9
    calls = []

    def handle(_worker: ThreadWorker, conn: Connection) -> bool:
        calls.append(conn)
        if len(calls) > 1:
            conn.sock.recv(len(request))
        if len(calls) <= whole:
            theirs.sendall(request)
        else:
            theirs.sendall(request[:-1])  # a thread is not for what trickles
        return True

    with ours, theirs:
        ours.settimeout(5)
        conn: Any = Connection.__new__(Connection)
        conn.sock, conn.parser = ours, get_parser(Config(), ours, ("", 0))
        conn.parser.unreader.buf.write(ahead)
        now = 1000.0
        conn.answered_at = now - (CLOSELY_S / 2 if follows else 2 * CLOSELY_S)
        monkeypatch.setattr(ThreadWorker, "handle", handle)
        monkeypatch.setattr("time.monotonic", lambda: now)
        assert worker.handle(conn) is True
        assert len(calls) == served
        assert conn.answered_at == now


def test_a_thread_that_waits_for_more_gives_it_up_soon() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not comes_whole(ours, CLOSELY_S)
        theirs.close()
        assert not comes_whole(ours, CLOSELY_S)
