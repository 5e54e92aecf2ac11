"""Calls that wait for orders: one event a call, found by the worker's name.

A thousand of them cost a thousand sleeping threads, and a look at the ledger every now and then
each, in case that word of an order was lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeVar

#: how often a waiting call looks by itself, give or take JITTER
LOOK_EVERY_S: Final = 10.0
JITTER: Final = (0.8, 1.2)

T = TypeVar("T")


class OrderWaits:
    """The calls of one process that wait for orders."""

    def __init__(
        self,
        place: Callable[[], AbstractContextManager[None]],
        *,
        stopped: threading.Event,
        seen: Callable[[str], object],
    ) -> None:
        """Wait in a ``place`` among all calls that wait, until ``stopped``."""
        self._place = place
        self._stopped = stopped
        self._seen = seen
        self._lock = threading.Lock()
        self._calls: dict[str, set[threading.Event]] = {}

    def wait(
        self,
        worker_id: str,
        look: Callable[[], T | None],
        *,
        wait_s: float,
        gone: Callable[[], bool] = lambda: False,
    ) -> T | None:
        """Look, and while there is nothing look again when the worker has new orders.

        Who is ``gone`` is not seen by that.

        Raises:
            Crowded: there is nothing, and no place to wait for it.
        """
        until = time.monotonic() + wait_s
        if (found := look()) is not None or wait_s <= 0:
            return found
        event = threading.Event()
        with self._place():
            self._enter(worker_id, event)
            try:
                # the first look closes the gap between the look before and the place taken
                while (found := look()) is None and (left := until - time.monotonic()) > 0:
                    if self._stopped.is_set():
                        break
                    if not gone():
                        self._seen(worker_id)
                    event.wait(min(left, LOOK_EVERY_S * random.uniform(*JITTER)))  # noqa: S311
                    event.clear()
                return found
            finally:
                self._leave(worker_id, event)

    def wake(self, worker_id: str) -> None:
        """Let the calls of a worker look now."""
        with self._lock:
            for event in self._calls.get(worker_id, ()):
                event.set()

    def wake_all(self) -> None:
        """Let every call look now; takes no lock, for a signal handler may ask."""
        for events in list(self._calls.values()):
            for event in list(events):
                event.set()

    def _enter(self, worker_id: str, event: threading.Event) -> None:
        with self._lock:
            self._calls.setdefault(worker_id, set()).add(event)

    def _leave(self, worker_id: str, event: threading.Event) -> None:
        with self._lock:
            events = self._calls[worker_id]
            events.discard(event)
            if not events:
                del self._calls[worker_id]
