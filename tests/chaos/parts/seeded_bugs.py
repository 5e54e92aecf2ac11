"""The proof put to the proof: with each of six known mistakes in the product it must fail."""

from __future__ import annotations

import time
from typing import Final

from tests.chaos.report import Options, PartReport, Violation
from tests.simulation import run as simulation
from tests.simulation.bugs import BUGS, Bug

#: the mix under which mistakes show soonest
MIX: Final = simulation.MIXES["writes"]
#: seeds that any of them may take, however little time there is
ENOUGH: Final = 40
#: of the time of a part that counts it
SHARE: Final = 0.4


def run(options: Options) -> PartReport:
    """Break the product in each way, and run seeds until that shows."""
    started = time.monotonic()
    figures: dict[str, float | str] = {}
    violations: list[Violation] = []
    for name, bug in BUGS.items():
        with bug.made():
            taken, evidence = _seeds_until_found(
                bug, options.seed, seconds=options.seconds * SHARE / len(BUGS)
            )
        figures[f"seeds_{name}"] = taken
        if not evidence:
            violations.append(Violation("self-test", name, f"not found by {taken} seeds"))
    figures["bugs_found"] = len(BUGS) - len(violations)
    figures["bugs_seeded"] = len(BUGS)
    seconds = time.monotonic() - started
    return PartReport("seeded bugs", seconds, figures, tuple(violations))


def _seeds_until_found(bug: Bug, first: int, *, seconds: float) -> tuple[int, str]:
    """Return how many seeds it took, and what showed in the last of them."""
    until = time.monotonic() + seconds
    taken = 0
    while taken < ENOUGH or time.monotonic() < until:
        result = simulation.run(first + taken, MIX)
        taken += 1
        if bug.found(result.broken):
            return taken, str(result)
    return taken, ""
