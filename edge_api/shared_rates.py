"""The only one to know how the counts of several edges become one, and what that may cost.

To ask Redis at each call would add a round trip to every heartbeat. So an edge tells what it has
counted in blocks, and hears what all of them have told: together they allow the limit and less
than one block more for each edge. While Redis is away each counts for itself; nobody waits for it,
and nobody is let in or kept out for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cachetools import TTLCache
from limits import RateLimitItem

from broker.errors import ReservationsUnavailable

logger = logging.getLogger(__name__)

#: blocks to a limit
BLOCKS: Final = 20
#: counts remembered at once
KEYS_MAX: Final = 50_000
KEEP_S: Final = 120.0
#: a Redis that did not take a count is left alone for as long
AWAY_S: Final = 5.0


class Tally(Protocol):
    """Adds to a count that all edges see, and returns it."""

    def __call__(self, name: str, amount: int, *, keep_s: int) -> int:
        """Add; raises ``ReservationsUnavailable``."""


@dataclass(slots=True)
class _Count:
    """What one edge knows of one key in one window."""

    #: counted here and not told yet
    untold: int = 0
    #: counted by all, when last heard
    heard: int = 0


class SharedRates:
    """Counts that all edges keep together; safe to share between threads.

    Windows begin at the same moment for all by ``timer``, which is the queue's one clock: an edge
    whose own is wrong would count in windows that nobody shares.
    """

    def __init__(self, tally: Tally, *, timer: Callable[[], float]) -> None:
        self._tally = tally
        self._timer = timer
        self._lock = threading.Lock()
        self._counts: TTLCache[tuple[str, int], _Count] = TTLCache(KEYS_MAX, KEEP_S)
        self._away_until = 0.0

    def over(self, item: RateLimitItem, *key: str) -> float | None:
        """Count a call; the seconds until the window ends when there were too many, else None."""
        seconds, now = item.get_expiry(), self._timer()
        window = int(now // seconds)
        with self._lock:
            count = self._counts.setdefault((item.key_for(*key), window), _Count())
            count.untold += 1
            due = count.untold >= max(1, item.amount // BLOCKS) and now >= self._away_until
            told = count.untold if due else 0
            count.untold -= told
        if told and count.heard <= item.amount:
            self._tell(count, f"{item.key_for(*key)}:{window}", told, seconds)
        return (window + 1) * seconds - now if count.heard > item.amount else None

    def _tell(self, count: _Count, name: str, amount: int, seconds: int) -> None:
        try:
            count.heard = self._tally(name, amount, keep_s=2 * seconds)
        except ReservationsUnavailable as error:
            with self._lock:
                self._away_until = self._timer() + AWAY_S
            logger.debug("this edge counts for itself: %s", error)
