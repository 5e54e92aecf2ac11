"""The only one to know when a connection deserves a thread: once its request is here.

What has come so far stays in the kernel and is only looked at (MSG_PEEK), and SO_RCVLOWAT keeps
the kernel quiet until what is missing may have come. So a socket that trickles costs a descriptor
and no thread, however many there are; only a body too large for that is read by a thread as it
comes, and of those there are few at once.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Generic, TypeVar

KIB: Final = 1024
URL_MAX: Final = 4 * KIB
#: request line and headers together
HEAD_MAX: Final = 16 * KIB
#: a request up to this is received without a thread; what workers say often is a hundredth of it
WHOLE_MAX: Final = 64 * KIB

#: what a thread looks at that waits for the next request
SHORT_MAX: Final = 8 * KIB

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
#: a body of unknown length, or one that waits for our word
_STREAMED: Final = re.compile(rb"\r\n(?:transfer-encoding|expect)[ \t]*:", re.IGNORECASE)

C = TypeVar("C")


class Arrival(Enum):
    """How much of a request has come."""

    #: all of it
    WHOLE = auto()
    #: its head, and a body that a thread must read as it comes
    STREAM = auto()
    #: too little to say
    PART = auto()
    #: nothing, and nothing will
    GONE = auto()
    #: a request line that has no end
    URL_TOO_LONG = auto()
    #: headers that have no end
    HEAD_TOO_LARGE = auto()


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a request, and how many bytes it takes to see more."""

    arrival: Arrival
    seen: int = 0
    needed: int = 1


def judge(data: bytes | bytearray, size: int) -> Look:
    """Say how much of a request the first ``size`` bytes of ``data`` are; more may follow them."""
    end = data.find(_END, 0, min(size, HEAD_MAX))
    if end < 0:
        return _judge_part(data, size)
    head = bytes(data[: end + len(_END)])
    length = _LENGTH.search(head)
    whole = len(head) + (int(length[1]) if length else 0)
    if whole > WHOLE_MAX or _STREAMED.search(head):
        return Look(Arrival.STREAM, size, whole)
    return Look(Arrival.PART if size < whole else Arrival.WHOLE, size, whole)


def _judge_part(data: bytes | bytearray, size: int) -> Look:
    line = data.find(b"\r\n", 0, min(size, URL_MAX + 2))
    if line < 0 and size > URL_MAX + 2:
        return Look(Arrival.URL_TOO_LONG, size)
    if size >= HEAD_MAX:
        return Look(Arrival.HEAD_TOO_LARGE, size)
    return Look(Arrival.PART, size, size + 1)


class Reception:
    """Looks at sockets, one at a time, and takes nothing from them."""

    def __init__(self) -> None:
        self._buffer = bytearray(WHOLE_MAX)

    def look(self, sock: socket.socket, *, before: int) -> Look:
        """Look at a socket that has something to tell; ``before`` is what was seen last time."""
        try:
            size = sock.recv_into(self._buffer, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return Look(Arrival.PART, before, before + 1)
        except OSError:
            return Look(Arrival.GONE)
        if size == 0:
            return Look(Arrival.GONE)
        found = judge(self._buffer, size)
        if found.arrival is not Arrival.PART:
            return found
        if size == before:
            # Woken for nothing new: the peer has ended its side, or the kernel is short of memory
            # and wants its bytes fetched. A thread finds out which.
            return Look(Arrival.STREAM, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, found.needed)
        return found


def comes_whole(sock: socket.socket, wait_s: float) -> bool:
    """Wait a moment for a request that comes all at once, as short ones do."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(wait_s * 1000):
        return False
    try:
        data = sock.recv(SHORT_MAX, socket.MSG_PEEK)
    except OSError:
        return False
    return judge(data, len(data)).arrival is Arrival.WHOLE


class Shelf(Generic[C]):
    """Connections that wait for something, each until its moment; those put first expire first."""

    def __init__(self) -> None:
        self._until: dict[C, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def put(self, one: C, until: float) -> None:
        """Put one in, behind all others."""
        self._until[one] = until

    def take(self, one: C) -> None:
        """Take one out."""
        del self._until[one]

    def oldest(self) -> C | None:
        """Return the first one that was put in, if any is there."""
        return next(iter(self._until), None)

    def cap(self, until: float) -> None:
        """Let nothing stay longer than until then."""
        self._until = {one: min(moment, until) for one, moment in self._until.items()}

    def expired(self, now: float) -> Iterator[C]:
        """Yield those whose moment has come; each must be taken out before the next."""
        while self._until:
            one, until = next(iter(self._until.items()))
            if until > now:
                return
            yield one
