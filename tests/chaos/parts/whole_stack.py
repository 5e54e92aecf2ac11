"""Random chaos on the whole stack: everything real, everything killed, frozen, flushed or cut."""

from tests.chaos.judged import storms
from tests.chaos.report import Options, PartReport
from tests.chaos.servers import Shape


def run(options: Options) -> PartReport:
    """Run once on each database; the seconds are shared."""
    shapes = {database: Shape(database=database) for database in options.databases}
    return storms("whole stack", shapes, options, options.seconds / len(shapes))
