"""The whole stack on reservations behind a Sentinel, whose primary is lost again and again."""

from typing import Final

from tests.chaos.judged import on, storms
from tests.chaos.report import Options, PartReport
from tests.chaos.servers import Shape

#: of the time of a part that counts it
SHARE: Final = 0.4


def run(options: Options) -> PartReport:
    """Run once; every second fault is a failover."""
    database = on(options, "postgres")
    shape = Shape(database=database, sentinel=True)
    return storms("failover", {database: shape}, options, options.seconds * SHARE)
