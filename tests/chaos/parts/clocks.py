"""The whole stack with half of its processes in other times, whose clocks jump."""

from typing import Final

from tests.chaos.judged import on, storms
from tests.chaos.report import Options, PartReport
from tests.chaos.servers import Shape

#: of the time of a part that counts it
SHARE: Final = 0.4


def run(options: Options) -> PartReport:
    """Run once; every second fault is a clock's."""
    database = on(options, "postgres")
    shape = Shape(database=database, skewed=True)
    return storms("clocks", {database: shape}, options, options.seconds * SHARE)
