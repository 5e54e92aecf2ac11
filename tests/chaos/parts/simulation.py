"""Seeded schedules of the queue's own code, one store call a step; see `tests.simulation`."""

from __future__ import annotations

import time
from collections import Counter

from tests.chaos.report import Options, PartReport, Violation
from tests.simulation.run import MIXES, many

#: of the time of a part that counts it
SHARE = 0.4


def run(options: Options) -> PartReport:
    """Run seed after seed, all mixes in turn, for as long as asked."""
    started, cpu = time.monotonic(), time.process_time()
    results = many(options.seed, list(MIXES), seconds=options.seconds * SHARE)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    found: Counter[str] = Counter()
    for result in results:
        found.update(result.figures)
    struck: Counter[str] = Counter()
    for result in results:
        struck.update(result.struck)
    zeros = ("lost", "double_terminal", "acknowledged_result_lost", "stale_accepted")
    figures: dict[str, float | str] = {
        "seeds": len(results),
        "steps": sum(result.steps for result in results),
        "steps_per_cpu_s": round(sum(result.steps for result in results) / cpu),
        "grants": found["granted"],
        "flushes": found["flushes"],
        # each strikes inside a call on a store, so an operation is always in flight
        "faults_in_flight": sum(struck.values()),
        "points_struck": len(struck),
        "stale_rejected": found["stale_rejected"],
        **{name: found[name] for name in zeros},
    }
    violations = tuple(
        Violation(one.invariant, one.job, f"seed {result.seed}, mix {result.mix}: {one.evidence}")
        for result in results
        for one in result.broken
    )
    return PartReport("simulation", seconds, figures, violations)
