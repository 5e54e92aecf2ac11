"""Who was seen, and how the orders of each stand: what an edge knows of workers for a second."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

from broker.reservations.server import Told

#: a worker seen is not marked again within this
SEEN_EVERY_S: Final = 1.0
#: the header in which a worker says its machine's load averages, of 1, 5 and 15 minutes
LOAD: Final = "Bridge-Load"
_LOAD: Final = re.compile(r"[0-9]{1,5}(\.[0-9]{1,2})?(,[0-9]{1,5}(\.[0-9]{1,2})?){2}")


class Presence:
    """Marks workers as seen, sparing Redis the calls that would tell it nothing new."""

    def __init__(self, mark: Callable[[str, str | None], Told | None]) -> None:
        """Mark a worker by ``mark``, which never raises and answers how its orders stand."""
        self._mark = mark
        self._marked: TTLCache[str, Told | None] = TTLCache(maxsize=10_000, ttl=SEEN_EVERY_S)
        self._lock = threading.Lock()

    def seen(self, worker_id: str, load: str | None = None) -> None:
        """Take note that a worker calls or waits, and of its machine's load if it says so."""
        with self._lock:
            if worker_id in self._marked:
                return
            self._marked[worker_id] = None
        self.renew(worker_id, load if load is not None and _LOAD.fullmatch(load) else None)

    def renew(self, worker_id: str, load: str | None = None) -> None:
        """Learn how its orders stand by now."""
        told = self._mark(worker_id, load)
        with self._lock:
            self._marked[worker_id] = told

    def told(self, worker_id: str) -> Told | None:
        """Return how a worker's orders stood a moment ago; None when that is not known."""
        with self._lock:
            return self._marked.get(worker_id)

    def drains(self, worker_id: str) -> bool:
        """Tell whether a worker was ordered to claim no more."""
        told = self.told(worker_id)
        return told is not None and told.drain
