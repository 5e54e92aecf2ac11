"""Random chaos on the whole stack: everything real, everything killed, frozen, flushed or cut."""

import time
from collections import Counter

from tests.chaos import storm
from tests.chaos.measures import describe, unexplained
from tests.chaos.oracle import figures, judge
from tests.chaos.report import Options, PartReport, Violation


def run(options: Options) -> PartReport:
    """Run once on each database; the seconds are shared."""
    begun = time.monotonic()
    total: Counter[str] = Counter()
    told: dict[str, float | str] = {}
    found: list[Violation] = []
    for database in options.databases:
        folder = options.folder / database
        seconds = options.seconds / len(options.databases)
        one = storm.run(
            database, seed=options.seed, seconds=seconds, folder=folder, also=options.also
        )
        broken = [*judge(one.facts), *unexplained(one.facts)]
        found += broken
        total.update(figures(one.facts, broken))
        struck = Counter(fault.kind for fault in one.facts.faults if fault.in_flight)
        told |= {f"{database}: {name}, in flight": struck[name] for name in options.also}
        how = describe(one.facts) | {
            "healed after s": round(one.recovery_s, 1),
            "drained after s": round(one.drain_s, 1),
        }
        told |= {f"{database}: {name}": value for name, value in how.items()}
    return PartReport(
        name="whole stack",
        seconds=time.monotonic() - begun,
        figures={**total, **told},
        violations=tuple(found),
    )
