"""Which queues each worker shall leave alone: read from the ledger once for each of its orders."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

from broker.records import Orders
from broker.reservations.server import Told

#: workers remembered
WORKERS: Final = 10_000


class Pauses:
    """Answers by memory while a worker's orders stand as they did; threads may share it."""

    def __init__(self, told: Callable[[str], Told | None], read: Callable[[str], Orders]) -> None:
        """Learn by ``told`` whether there are newer orders, and by ``read`` what they say."""
        self._told = told
        self._read = read
        self._lock = threading.Lock()
        self._known: LRUCache[str, tuple[int, frozenset[str]]] = LRUCache(WORKERS)

    def of(self, worker_id: str) -> frozenset[str]:
        """Return the queues from which a worker shall be given nothing.

        The grant has the last word: this keeps claims from trying what it would refuse.

        Raises:
            Unavailable: the ledger must be asked, and is away.
        """
        told = self._told(worker_id)
        with self._lock:
            known = self._known.get(worker_id)
        if known is not None and (told is None or told.cursor <= known[0]):
            return known[1]
        standing = self._read(worker_id)
        found = standing.cursor, frozenset(standing.paused)
        with self._lock:
            # of two that read at once, the one who comes later may have read earlier
            known = self._known.get(worker_id, found)
            self._known[worker_id] = newest = found if found[0] >= known[0] else known
        return newest[1]
