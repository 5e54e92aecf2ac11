"""The bootsteps by which a Celery worker becomes a bridge.

``BridgeStep`` starts and stops the bridge with the worker, not with its broker connection: leases
end and results are told while the broker is away. ``MessagesStep`` ingests from brokers other than
Redis, through one ``Feed`` a queue.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from broker.bridge.feed import Feed
from broker.bridge.runtime import Bridge


class BridgeStep(bootsteps.StartStopStep):
    """The bridge's life is the worker's life."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Start the bridge."""
        _bridge(worker.app).start(worker.hostname)

    def stop(self, worker: Any) -> None:
        """Stop it."""
        _bridge(worker.app).stop()

    terminate = stop


class MessagesStep(bootsteps.ConsumerStep):
    """Feeds from a broker other than Redis, anew with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        self.feeds: list[Feed] = []

    def include_if(self, c: Any) -> bool:
        """Leave Redis to the drain."""
        return not _bridge(c.app).by_drain

    def start(self, c: Any) -> None:
        """Begin to consume; a queue that is not there keeps no other one waiting."""
        bridge, execute = _bridge(c.app), c.create_task_handler()
        self.feeds = [
            Feed(c, bridge, name, execute=execute) for name in bridge.settings.bridge.queues
        ]
        bridge.purges.still.update((feed.name, feed.still) for feed in self.feeds)
        for feed in self.feeds:
            feed.begin()

    def stop(self, c: Any) -> None:
        """Stop consuming."""
        _bridge(c.app).purges.still.clear()
        feeds, self.feeds = self.feeds, []
        for feed in feeds:
            feed.close()

    shutdown = stop


def _bridge(app: Any) -> Bridge:
    found: Bridge = app.drawbridge
    return found
