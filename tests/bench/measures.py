"""What a measurement is made of: cuts of a sample, CPU of processes, and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil


def cuts_ms(taken_s: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 of some durations, in milliseconds."""
    cuts = statistics.quantiles(taken_s, n=100)
    return {"p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the seconds of CPU that processes have used so far, each with its children."""
    used: dict[str, float] = {}
    for role, pid in pids.items():
        own = psutil.Process(pid)
        used[role] = 0.0
        for one in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                time = one.cpu_times()
                used[role] += time.user + time.system
        # PostgreSQL's servers come and go; what they used is their parent's then
        used[role] += own.cpu_times().children_user + own.cpu_times().children_system
    return used


def spent_ms(
    before: Mapping[str, float], after: Mapping[str, float], count: int
) -> dict[str, float]:
    """Return the CPU milliseconds of each role for one of ``count``."""
    return {role: (after[role] - used) / count * 1000 for role, used in before.items()}


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows of the same keys as lines of text."""
    shown = [{key: _cell(value) for key, value in row.items()} for row in rows]
    if not shown:
        return []
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in shown[0]}
    head = "  ".join(key.rjust(width) for key, width in widths.items())
    return [
        head,
        *("  ".join(row[key].rjust(width) for key, width in widths.items()) for row in shown),
    ]


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
