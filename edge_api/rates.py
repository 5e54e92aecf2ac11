"""The only one to know how often somebody may call, and what counts against whom.

A worker's calls count against that worker alone, each sort by itself, so that one that floods its
log still keeps its leases. Refused credentials count against where they came from, and only once
they are refused: a good credential never meets that count, whoever shares its address. Each edge
counts for itself, in memory, and with the others as far as Redis lets it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_network
from typing import Final

from cachetools import TTLCache
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond

from edge_api.errors import RateLimited
from edge_api.shared_rates import SharedRates
from edge_api.source import Address

#: over so many seconds calls are counted: a burst is no flood
WINDOW_S: Final = 10
#: counts remembered at once
KEYS_MAX: Final = 50_000
#: longer than any window
KEEP_S: Final = 120.0
#: of one network of IPv6, which is one subscriber
PREFIX_V6: Final = 64


class Sort(StrEnum):
    """Calls that are counted together."""

    CLAIM = "claim"
    HEARTBEAT = "heartbeat"
    END = "end"
    EVENTS = "events"
    UPLOAD = "upload"
    OTHER = "other"


#: by endpoint; heartbeats without end keep no lease from ending, and the other way round
SORTS: Final = {
    "leases.claim": Sort.CLAIM,
    "leases.heartbeat": Sort.HEARTBEAT,
    "leases.complete": Sort.END,
    "leases.complete_many": Sort.END,
    "leases.fail": Sort.END,
    "leases.release": Sort.END,
    "leases.cancel_ack": Sort.END,
    "events.events": Sort.EVENTS,
    "artifacts.upload": Sort.UPLOAD,
    "uploads.uploads": Sort.UPLOAD,
    "uploads.upload": Sort.UPLOAD,
    "uploads.part": Sort.UPLOAD,
    "uploads.finish": Sort.UPLOAD,
}


@dataclass(slots=True)
class _Window:
    """What was counted since a first call, up to a moment of the monotonic clock."""

    until: float
    count: int = 0


class Rates:
    """How often each has called of late; safe to share between threads.

    Windows are this process's own, by a clock that nobody sets: one that an administrator sets back
    would keep a window open for as long, and a busy worker out.
    """

    def __init__(
        self,
        *,
        calls_per_s: int,
        failures_per_min: int,
        shared: SharedRates | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._timer = timer
        self._lock = threading.Lock()
        self._windows: TTLCache[str, _Window] = TTLCache(KEYS_MAX, KEEP_S, timer)
        self._calls = RateLimitItemPerSecond(calls_per_s * WINDOW_S, WINDOW_S, "worker")
        self._failures = RateLimitItemPerMinute(failures_per_min, 1, "source")

    def called(self, worker_id: str, endpoint: str | None) -> None:
        """Count a worker's call.

        Raises:
            RateLimited: one of a sort of which there were too many.
        """
        self._hit(self._calls, worker_id, SORTS.get(endpoint or "", Sort.OTHER))

    def failed(self, address: Address | None) -> None:
        """Count a credential that was refused.

        Raises:
            RateLimited: too many from there.
        """
        self._hit(self._failures, counted_as(address))

    def _hit(self, item: RateLimitItem, *key: str) -> None:
        now = self._timer()
        window = self._window(item.key_for(*key), now, item.get_expiry())
        if window.count > item.amount:
            raise RateLimited(retry_after_s=max(1, math.ceil(window.until - now)))
        # Only now: whoever is refused by this edge alone costs Redis nothing.
        over_s = None if self._shared is None else self._shared.over(item, *key)
        if over_s is not None:
            raise RateLimited(retry_after_s=math.ceil(over_s))

    def _window(self, name: str, now: float, seconds: int) -> _Window:
        """Count a call in its window."""
        with self._lock:
            window = self._windows.get(name)
            if window is None or window.until <= now:
                window = self._windows[name] = _Window(until=now + seconds)
            window.count += 1
        return window


def counted_as(address: Address | None) -> str:
    """Return what an address counts as: itself, or for IPv6 its network."""
    if address is None:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, PREFIX_V6), strict=False))
        address = address.ipv4_mapped
    return str(address)
