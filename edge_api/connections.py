"""The only one to know gunicorn's threads: who gets one, for how long, and how a connection ends.

A connection rests between two requests, arrives while its next one comes in, is served by a
thread once it is whole, and leaves without one: all but the serving is done by the one loop, which
never waits for anybody.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from flask import Flask
from gunicorn.workers.gthread import ThreadWorker

from edge_api import early
from edge_api.connection import Connection, corked
from edge_api.reception import Arrival, Look, Reception, Shelf, comes_whole
from edge_api.services import EXTENSION, Services
from edge_api.settings import STREAMS

logger = logging.getLogger(__name__)

#: how long a connection between two calls is kept; longer than workers pause
KEEPALIVE_S: Final = 75.0
#: how long a request may take to come in
ARRIVE_S: Final = 30.0
#: what the body that a thread reads must bring at least, on average
STREAM_BYTES_PER_S: Final = 16 * 1024
#: how long a connection that we end may take to say goodbye, and what it may still send
LEAVE_S: Final = 2.0
LEAVE_BYTES: Final = 1024 * 1024
#: how long a thread waits for the rest of a body that nobody wanted
UNREAD_S: Final = 0.5
#: a request this soon after an answer follows it closely, and so may the next
CLOSELY_S: Final = 0.02
#: connections that are taken from the queue of the kernel at once
ACCEPTS: Final = 64

_REFUSED: Final = {
    Arrival.URL_TOO_LONG: HTTPStatus.REQUEST_URI_TOO_LONG,
    Arrival.HEAD_TOO_LARGE: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}


class EdgeWorker(ThreadWorker):
    """gunicorn's threads for requests that are here, with the contract's errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reception = Reception()
        self._resting: Shelf[Connection] = Shelf()
        self._arriving: Shelf[Connection] = Shelf()
        self._leaving: Shelf[Connection] = Shelf()
        #: bodies that threads read as they come
        self._streams: dict[Connection, float] = {}
        # of a socket that several processes listen on the idlest one shall get the next
        self._accepts = ACCEPTS if self.cfg.workers == 1 else 1
        self._connections_max = self.worker_connections
        # Whoever is one too many takes the place of the idlest; accepting never stops.
        self.worker_connections += ACCEPTS + 1

    # -- signals -----------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Finish what is being answered; calls that wait are answered at once."""
        self._end_waits()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End now."""
        self._end_waits()
        super().handle_quit(sig, frame)

    def _end_waits(self) -> None:
        app = cast(Flask | None, self.wsgi)
        if app is not None:
            cast(Services, app.extensions[EXTENSION]).waiting.stop()

    # -- the loop ----------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take in those who knock; none of them gets a thread before it has said something."""
        for _ in range(self._accepts):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            if self.nr_conns >= self._connections_max and not self._evict():
                sock.close()
                continue
            self.nr_conns += 1
            conn = Connection(self.cfg, sock, address, listener.getsockname())
            self._watch(self._arriving, conn, ARRIVE_S, self._on_arriving)

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """Go on with a connection whose thread is done with it."""
        self._streams.pop(conn, None)
        try:
            keep = not fs.cancelled() and bool(fs.result())
        except Exception:
            logger.exception("connection failed", extra={"action": "crash"})
            keep = False
        if not keep:
            self._leave(conn)
        elif conn.parser.unreader.buf.getvalue():
            # Sent ahead, and no longer in the kernel where it could be looked at.
            self._stream(conn, 0)
        else:
            self._watch(self._resting, conn, KEEPALIVE_S if self.alive else LEAVE_S, self._on_rest)

    def murder_keepalived(self, force: bool = False) -> None:  # noqa: FBT001, FBT002  gunicorn's
        """End what has rested for too long."""
        for conn in self._resting.expired(float("inf") if force else time.monotonic()):
            self._drop(self._resting, conn)

    def murder_pending(self) -> None:
        """End what takes too long to arrive, to be read, or to leave."""
        now = time.monotonic()
        for conn in self._arriving.expired(now):
            self._unwatch(self._arriving, conn)
            self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT)
        for conn in self._leaving.expired(now):
            self._drop(self._leaving, conn)
        for conn in [one for one, until in self._streams.items() if until <= now]:
            # Its thread sees the end of the body, answers what that means, and lets go.
            del self._streams[conn]
            with suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RD)

    def _cap_keepalive(self, deadline: float) -> None:
        """Let nobody who has not asked yet hold up the end."""
        self._resting.cap(deadline)
        self._arriving.cap(deadline)

    def _on_rest(self, conn: Connection, _sock: object) -> None:
        self._unwatch(self._resting, conn)
        conn.seen = 0
        if not self._consider(conn, self._look(conn)):
            self._watch(self._arriving, conn, ARRIVE_S, self._on_arriving)

    def _on_arriving(self, conn: Connection, _sock: object) -> None:
        look = self._look(conn)
        if look.arrival is not Arrival.PART:
            self._unwatch(self._arriving, conn)
            self._consider(conn, look)

    def _look(self, conn: Connection) -> Look:
        look = self._reception.look(conn.sock, before=conn.seen)
        conn.seen = look.seen
        return look

    def _consider(self, conn: Connection, look: Look) -> bool:
        """Do what is due for a connection that nothing watches now; False: watch it further."""
        match look.arrival:
            case Arrival.PART:
                return False
            case Arrival.WHOLE:
                self._serve(conn)
            case Arrival.STREAM:
                self._stream(conn, look.needed)
            case Arrival.GONE:
                self._close(conn)
            case refused:
                self._refuse(conn, _REFUSED[refused])
        return True

    def _serve(self, conn: Connection) -> None:
        with suppress(OSError):  # a thread reads what there is, and not only when it is much
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self.enqueue_req(conn)

    def _stream(self, conn: Connection, length: int) -> None:
        if len(self._streams) >= STREAMS:
            self._refuse(conn, HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._streams[conn] = time.monotonic() + ARRIVE_S + length / STREAM_BYTES_PER_S
        self._serve(conn)

    def _evict(self) -> bool:
        """Make place by ending what has arrived or rested the longest."""
        for shelf in (self._leaving, self._arriving, self._resting):
            conn = shelf.oldest()
            if conn is not None:
                self._drop(shelf, conn)
                return True
        return False

    # -- the ways out ------------------------------------------------------------------------

    def _refuse(self, conn: Connection, status: HTTPStatus) -> None:
        logger.info("refused: %s", status.phrase, extra={"action": "refuse"})
        with suppress(OSError):  # a few hundred bytes to an empty buffer never block
            conn.sock.send(early.refusal(status))
        self._leave(conn)

    def _leave(self, conn: Connection) -> None:
        """End our side, and let the peer read the answer before the connection is torn down."""
        try:
            conn.sock.settimeout(0)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._watch(self._leaving, conn, LEAVE_S, self._on_leaving)

    def _on_leaving(self, conn: Connection, _sock: object) -> None:
        try:
            size = len(conn.sock.recv(64 * 1024))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        conn.drained += size
        if not size or conn.drained > LEAVE_BYTES:
            self._drop(self._leaving, conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    def _drop(self, shelf: Shelf[Connection], conn: Connection) -> None:
        self._unwatch(shelf, conn)
        self._close(conn)

    def _watch(
        self,
        shelf: Shelf[Connection],
        conn: Connection,
        seconds: float,
        callback: Callable[[Connection, object], None],
    ) -> None:
        conn.sock.settimeout(0)
        shelf.put(conn, time.monotonic() + seconds)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(callback, conn))

    def _unwatch(self, shelf: Shelf[Connection], conn: Connection) -> None:
        shelf.take(conn)
        self.poller.unregister(conn.sock)

    # -- in a thread -------------------------------------------------------------------------

    def handle(self, conn: Any) -> Any:
        """Serve a request, and those that follow each other closely.

        To give the connection back and get it again costs a third of a short request; who calls
        seldom keeps no thread from others.
        """
        closely = time.monotonic() - conn.answered_at < CLOSELY_S
        keep = super().handle(conn)
        while keep and closely and self.alive and conn not in self._streams:
            # what was sent ahead is no longer in the kernel, where it could be looked at
            if conn.parser.unreader.buf.getvalue() or not comes_whole(conn.sock, CLOSELY_S):
                break
            keep = super().handle(conn)
        conn.answered_at = time.monotonic()
        return keep

    def _keepalive_after(self, conn: Connection, keepalive: Any) -> bool:
        # A body that still comes is not worth a thread's time: the connection ends instead. Of one
        # that was all here a deadline would only tell how long a busy machine let the thread wait.
        deadline = time.monotonic() + UNREAD_S if conn in self._streams else None
        return bool(keepalive) and bool(conn.parser.finish_body(deadline=deadline))

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Let head and body of an answer leave together, in one segment."""
        if any(name == "EXPECT" for name, _ in req.headers):
            return super().handle_request(req, conn)
        with corked(conn.sock):
            return super().handle_request(req, conn)

    def handle_error(
        self,
        req: Any,  # noqa: ARG002  gunicorn's signature
        client: socket.socket,
        addr: Any,  # noqa: ARG002
        exc: Exception,
    ) -> None:
        """Answer what never became a request of the app."""
        status = early.status_of(exc)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("connection failed", exc_info=exc, extra={"action": "crash"})
        else:
            logger.info("refused: %s", type(exc).__name__, extra={"action": "refuse"})
        with suppress(OSError):
            client.sendall(early.refusal(status))
