"""What a part of the suite is asked and what it answers; imports nothing of the product.

A part is a module of `tests.chaos.parts` with `def run(options: Options) -> PartReport`. It starts
what it needs, ends it again, and takes all its randomness from `options.seed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: Figures of any part under these names are added up, and must be 0 in the end.
MUST_BE_ZERO: Final = ("lost", "double_terminal", "acknowledged_result_lost", "stale_accepted")
#: These are added up too, and must not be 0: a fault that struck nothing proves nothing.
MUST_BE_POSITIVE: Final = ("stale_rejected", "faults_in_flight")


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller wants of each part."""

    seed: int
    #: The budget of this part, in seconds; drains and start-up come on top.
    seconds: float
    #: "sqlite", "postgres": the ledgers to run on.
    databases: tuple[str, ...]
    #: A folder of the part's own, for logs and data.
    folder: Path
    #: Faults that happen to the whole stack only when asked for.
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept: which, on which job, and how one sees it."""

    invariant: str
    job: str
    evidence: str


@dataclass(frozen=True, slots=True)
class PartReport:
    """What a part did and found."""

    name: str
    seconds: float
    #: Figures by name; those of `MUST_BE_ZERO` and `MUST_BE_POSITIVE` are judged over all parts.
    figures: Mapping[str, float | str]
    violations: tuple[Violation, ...] = field(default=())
