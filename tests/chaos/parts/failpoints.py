"""Every step of every call, killed, failed before and failed after; see tests.simulation."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

from tests.chaos.report import Options, PartReport, Violation
from tests.simulation.calls import CALLS
from tests.simulation.failpoints import cases, play, reference


def run(options: Options) -> PartReport:
    """Play all cases, or in a drawn order as many as fit into the time."""
    undisturbed = {call: reference(CALLS[call]) for call in CALLS}
    started = time.monotonic()
    some = [case for call, (_, points) in undisturbed.items() for case in cases(call, points)]
    Random(options.seed).shuffle(some)
    played: Counter[str] = Counter()
    violations: list[Violation] = []
    for case in some:
        if time.monotonic() - started > options.seconds:
            break
        way = "kill" if case.how == "kill" else f"error {case.point.split(' ')[0]}"
        played[way] += 1
        wrong = play(case, undisturbed[case.call][0])
        violations += [Violation("I7", case.call, one) for one in wrong]
    figures: dict[str, float | str] = {
        "calls": len(CALLS),
        "points": len({(case.call, case.at) for case in some}),
        "cases": len(some),
        "cases_played": sum(played.values()),
        # a call is cut at each, so an operation is always in flight
        "faults_in_flight": sum(played.values()),
        **{way.replace(" ", "_"): number for way, number in sorted(played.items())},
    }
    return PartReport("failpoints", time.monotonic() - started, figures, tuple(violations))
