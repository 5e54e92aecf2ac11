"""What time it is: the reservations' clock when reachable, else ours with the last known offset."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from broker.errors import ReservationsUnavailable

#: how often the offset is measured, and how soon again after a failure
RESYNC_S: Final = 5.0
RETRY_S: Final = 1.0


def from_ms(ms: float) -> datetime:
    """Return epoch milliseconds as a moment in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def to_ms(moment: datetime) -> int:
    """Return a moment as epoch milliseconds."""
    return round(moment.timestamp() * 1000)


class Clock:
    """One clock for all processes: Redis's, read now and then and carried on by a monotonic one."""

    def __init__(
        self,
        read_ms: Callable[[], float],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the reference clock by ``read_ms``; it may raise ``ReservationsUnavailable``."""
        self._read_ms = read_ms
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._base_ms = wall() * 1000 - monotonic() * 1000
        self._next_sync = float("-inf")

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        if self._monotonic() >= self._next_sync and self._lock.acquire(blocking=False):
            try:
                self._sync()
            finally:
                self._lock.release()
        return from_ms(self._base_ms + self._monotonic() * 1000)

    def _sync(self) -> None:
        asked = self._monotonic()
        try:
            read = self._read_ms()
        except ReservationsUnavailable:
            self._next_sync = self._monotonic() + RETRY_S
            return
        answered = self._monotonic()
        # the answer was true somewhere between the question and now
        self._base_ms = read - (asked + answered) / 2 * 1000
        self._next_sync = answered + RESYNC_S
