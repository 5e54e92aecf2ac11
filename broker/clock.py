"""What time it is: the reservations' clock when reachable, else ours with the last known offset.

A process that has never reached them asks the ledger, so that all err alike; its own clock is the
last to be believed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from broker.errors import LedgerUnavailable, ReservationsUnavailable

#: how often the offset is measured, and how soon again after a failure
RESYNC_S: Final = 5.0
RETRY_S: Final = 1.0
#: so long a call waits for somebody who asks, before anything is known
FIRST_S: Final = 3.0


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
        else_ms: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the reference clock by ``read_ms``; it may raise ``ReservationsUnavailable``.

        Until that succeeds, ``else_ms`` counts; it may raise ``LedgerUnavailable``.
        """
        self._read_ms = read_ms
        self._else_ms = else_ms
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._base_ms = wall() * 1000 - monotonic() * 1000
        self._next_sync = float("-inf")
        #: whether anybody but this process has said what time it is
        self._known = False

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        if self._is_due() and self._lock.acquire(timeout=0 if self._known else FIRST_S):
            try:
                # another may have looked while this one waited
                if self._is_due():
                    self._sync()
            finally:
                self._lock.release()
        return from_ms(self._base_ms + self._monotonic() * 1000)

    def _is_due(self) -> bool:
        return self._monotonic() >= self._next_sync

    def _sync(self) -> None:
        try:
            self._follow(self._read_ms)
        except ReservationsUnavailable:
            if not self._known and self._else_ms is not None:
                with suppress(LedgerUnavailable):
                    self._follow(self._else_ms)
            self._next_sync = self._monotonic() + RETRY_S
            return
        self._next_sync = self._monotonic() + RESYNC_S

    def _follow(self, read_ms: Callable[[], float]) -> None:
        asked = self._monotonic()
        read = read_ms()
        answered = self._monotonic()
        # the answer was true somewhere between the question and now
        self._base_ms = read - (asked + answered) / 2 * 1000
        self._known = True
