"""What the drain is not: stock kombu consumption with Celery's early acknowledgement.

Each message is acknowledged when it is received, and put into the ledger a little later. This is
the deliberately weak stand-in that the suite must find out; run as a process of its own.
"""

import sys
from typing import Any, Final

from kombu import Connection, Consumer, Queue

from broker.clock import Clock
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings

BATCH: Final = 20


def main(broker_url: str, database_url: str, reservations_url: str, queue_name: str) -> None:
    """Consume until killed."""
    reservations = Reservations.connect(reservations_url)
    queue = JobQueue(
        Ledger(database_url), reservations, clock=Clock(reservations.clock_ms),
        settings=QueueSettings(),
    )  # fmt: skip
    batch: list[NewJob] = []

    def take(body: Any, message: Any) -> None:
        message.ack()
        _, kwargs, _ = body
        task_id, kind = message.headers["id"], message.headers["task"]
        batch.append(NewJob(task_id=task_id, queue=queue_name, type=kind, payload=kwargs))
        if len(batch) >= BATCH:
            queue.ingest(batch)
            batch.clear()

    with (
        Connection(broker_url) as connection,
        Consumer(connection, [Queue(queue_name)], callbacks=[take], accept=["json"]),
    ):
        while True:
            connection.drain_events()


if __name__ == "__main__":
    main(*sys.argv[1:])
