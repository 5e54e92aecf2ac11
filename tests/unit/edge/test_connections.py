"""Which connections go on after an answer, whatever the machine does meanwhile."""

import socket
from itertools import count
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser

from edge_api.connections import Connection, EdgeWorker

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
