"""The end of a request at a moment, whatever still drips through its connection.

requests knows the time of a single read alone: an edge, or whoever stands before it, that sends a
byte every few seconds would hold a thread for ever, in the handshake, the headers or the body.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection


class Line:
    """What a request goes over, by a second name that is good while TLS holds the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        #: the time was over before the request was
        self.cut = False

    def hold(self, line: socket.socket) -> None:
        """Have another from now on, and end it at once when it is too late."""
        with self._lock:
            self._let_go()
            self._socket = socket.fromfd(line.fileno(), line.family, line.type)
            self._end()

    def end(self) -> None:
        """Cut it, and whatever comes in its place."""
        with self._lock:
            self.cut = True
            self._end()

    def release(self) -> None:
        """Let go of it."""
        with self._lock:
            self._let_go()

    def _end(self) -> None:
        """Shut it when it is cut; the lock is held."""
        if self.cut and self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        """Close our name of it; the lock is held."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Here(threading.local):
    """The line of this thread's request."""

    line: Line | None = None


_here = _Here()


class _Noted(HTTPConnection):
    """Says which line it uses, when that is made and when it is used again."""

    def _new_conn(self) -> socket.socket:
        line = super()._new_conn()
        if _here.line is not None:
            _here.line.hold(line)
        return line

    def putrequest(self, *args: Any, **named: Any) -> None:
        """Begin a request."""
        if self.sock is not None and _here.line is not None:
            _here.line.hold(self.sock)
        super().putrequest(*args, **named)


class _NotedTLS(_Noted, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Noted


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _NotedTLS


_POOLS = {"http": _Pool, "https": _PoolTLS}


class Adapter(HTTPAdapter):
    """Makes connections that `within` can end."""

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        """Make those of the straight way."""
        super().init_poolmanager(*args, **named)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **named: Any) -> ProxyManager:
        """Make those of the way through a proxy."""
        manager: ProxyManager = super().proxy_manager_for(proxy, **named)
        manager.pool_classes_by_scheme = _POOLS
        return manager


@contextlib.contextmanager
def within(seconds: float) -> Iterator[Line]:
    """Cut this thread's request after so long."""
    line = Line()
    timer = threading.Timer(seconds, line.end)
    timer.daemon = True
    timer.start()
    _here.line = line
    try:
        yield line
    finally:
        _here.line = None
        timer.cancel()
        line.release()
