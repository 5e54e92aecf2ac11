"""How storms become the report of a part: judged, counted, described."""

import time
from collections import Counter
from collections.abc import Mapping

from tests.chaos import storm
from tests.chaos.measures import describe, unexplained
from tests.chaos.oracle import figures, judge
from tests.chaos.report import Options, PartReport, Violation
from tests.chaos.servers import Shape


def storms(name: str, shapes: Mapping[str, Shape], options: Options, seconds: float) -> PartReport:
    """Run one storm on each shape, so many seconds of faults each."""
    begun = time.monotonic()
    total: Counter[str] = Counter()
    told: dict[str, float | str] = {}
    found: list[Violation] = []
    for label, shape in shapes.items():
        one = storm.run(
            shape, seed=options.seed, seconds=seconds, folder=options.folder / label,
            also=options.also,
        )  # fmt: skip
        broken = [*judge(one.facts), *unexplained(one.facts)]
        found += broken
        total.update(figures(one.facts, broken))
        struck = Counter(fault.kind for fault in one.facts.faults if fault.in_flight)
        told |= {f"{label}: {kind}, in flight": struck[kind] for kind in options.also}
        how = describe(one.facts) | {
            "healed after s": round(one.recovery_s, 1),
            "drained after s": round(one.drain_s, 1),
        }
        told |= {f"{label}: {figure}": value for figure, value in (how | one.counts).items()}
    return PartReport(
        name=name,
        seconds=time.monotonic() - begun,
        figures={**total, **told},
        violations=tuple(found),
    )


def on(options: Options, wanted: str) -> str:
    """Name the ledger of a part that runs on one: the wanted one, if the caller allows it."""
    return wanted if wanted in options.databases else options.databases[0]
