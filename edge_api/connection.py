"""One connection: the only one to know how its socket waits, and how an answer leaves by it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from gunicorn.workers.gthread import TConn

#: how long a thread waits for one more byte, or for the peer to take one
STALL_S: Final = 30.0

#: Linux only; elsewhere an answer leaves in two segments, undelayed thanks to TCP_NODELAY
_CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)


class Connection(TConn):
    """A connection, and what was seen of its next request."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = 0
        #: what it sent while it left
        self.drained = 0
        #: when its last answer was sent
        self.answered_at = 0.0
        # gunicorn would wait for the first byte in a thread
        self.data_ready = True

    def init(self) -> None:
        """Get ready for a thread, which waits for the peer, but not for ever."""
        super().init()
        self.sock.settimeout(STALL_S)


@contextmanager
def corked(sock: socket.socket) -> Iterator[None]:
    """Let what is sent meanwhile leave together."""
    if _CORK is None:
        yield
        return
    sock.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
    try:
        yield
    finally:
        with suppress(OSError):  # the caller is gone
            sock.setsockopt(socket.IPPROTO_TCP, _CORK, 0)
