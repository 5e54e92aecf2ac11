"""The only one to know how often somebody may call, and what counts against whom.

A worker's calls count against that worker alone, each sort by itself, so that one that floods its
log still keeps its leases. Refused credentials count against where they came from, and only once
they are refused: a good credential never meets that count, whoever shares its address. Each edge
counts for itself, in memory, and with the others as far as Redis lets it.
"""

from __future__ import annotations

import math
import time
from enum import StrEnum
from ipaddress import IPv6Address, ip_network
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from edge_api.errors import RateLimited
from edge_api.shared_rates import SharedRates
from edge_api.source import Address

#: over so many seconds calls are counted: a burst is no flood
WINDOW_S: Final = 10
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


class Rates:
    """How often each has called of late."""

    def __init__(
        self, *, calls_per_s: int, failures_per_min: int, shared: SharedRates | None = None
    ) -> None:
        self._shared = shared
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
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
        if not self._limiter.hit(item, *key):
            reset = self._limiter.get_window_stats(item, *key).reset_time
            left = math.ceil(reset - time.time())
            # the storage's own end of a window lies up to a second beyond it
            raise RateLimited(retry_after_s=min(max(1, left), item.get_expiry()))
        # Only now: whoever is refused by this edge alone costs Redis nothing.
        over_s = None if self._shared is None else self._shared.over(item, *key)
        if over_s is not None:
            raise RateLimited(retry_after_s=math.ceil(over_s))


def counted_as(address: Address | None) -> str:
    """Return what an address counts as: itself, or for IPv6 its network."""
    if address is None:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, PREFIX_V6), strict=False))
        address = address.ipv4_mapped
    return str(address)
