"""The clock by which leases are measured: it never jumps, and goes on while a laptop sleeps."""

import time
from collections.abc import Callable

#: Seconds from an arbitrary start.
Clock = Callable[[], float]


def steady() -> float:
    """Return seconds since boot, sleep included where the system can say so.

    Linux stops CLOCK_MONOTONIC in suspend: a lid closed for ten minutes would leave a daemon that
    believes in a lease another worker holds by now.
    """
    boottime: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
