"""The whole stack with RabbitMQ as its Celery broker, killed, frozen and cut off."""

from typing import Final

from tests.chaos.judged import on, storms
from tests.chaos.report import Options, PartReport
from tests.chaos.servers import Shape

#: of the time of a part that counts it
SHARE: Final = 0.4


def run(options: Options) -> PartReport:
    """Run once; every second fault is the broker's."""
    database = on(options, "sqlite")
    shape = Shape(database=database, rabbitmq=True)
    return storms("rabbitmq", {database: shape}, options, options.seconds * SHARE)
