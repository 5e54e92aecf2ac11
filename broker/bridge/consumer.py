"""The bootsteps by which a Celery worker becomes a bridge.

``BridgeStep`` starts and stops the bridge with the worker, not with its broker connection: leases
end and results are told while the broker is away. ``MessagesStep`` ingests from brokers other than
Redis through consumers with a channel and prefetch of their own (celery.md §1.2 B).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

from celery import bootsteps
from kombu.messaging import Consumer

from broker.bridge.decode import Builtin, Decoder
from broker.bridge.fetch import tell
from broker.bridge.runtime import Bridge
from broker.errors import Unavailable
from broker.records import NewJob, Rejection

logger = logging.getLogger(__name__)

PREFETCH: Final = 100
#: pause before what the ledger did not take is offered to it again
AGAIN_S: Final = 1.0
#: pause before a queue that is not there is looked for again
LOOK_S: Final = 5.0


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
    """Ingests what a broker other than Redis delivers; acknowledged once the ledger has it.

    While the ledger is away the unacknowledged messages are held and no more are asked for:
    rejecting them would count against a queue's delivery limit, and kill good messages.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        self._held: list[tuple[Decoder, Any]] = []
        self._flushing = False
        self._stopped = True
        self._stock: Any = None

    def include_if(self, c: Any) -> bool:
        """Leave Redis to the drain."""
        return not _bridge(c.app).by_drain

    def start(self, c: Any) -> None:
        """Begin to consume, on a channel of its own; called again with each new connection."""
        self._held, self._flushing, self._stopped = [], False, False
        self._stock = c.create_task_handler()
        self._begin(c)

    def stop(self, c: Any) -> None:
        """Stop consuming; what is held comes again from the broker."""
        self._stopped, self._held = True, []
        super().stop(c)

    def _begin(self, c: Any) -> None:
        if self._stopped:
            return
        bridge = _bridge(c.app)
        channel = c.connection.channel()
        channel.Message = _bounded(channel.Message)
        queues = [bridge.app.amqp.queues[name](channel) for name in bridge.settings.bridge.queues]
        try:
            if not bridge.settings.bridge.declare_queues:
                for queue in queues:
                    queue.queue_declare(passive=True)
        except c.connection.channel_errors as error:
            logger.warning("a bridged queue is not there yet: %s", error)
            c.timer.call_after(LOOK_S, self._begin, (c,))
            return
        make: Any = Consumer
        self.consumers = [
            make(
                channel,
                [queue],
                on_message=partial(self._on_message, c, bridge.decoder(queue.name)),
                auto_declare=False,
                prefetch_count=PREFETCH,
            )
            for queue in queues
        ]
        for consumer in self.consumers:
            consumer.consume()

    def _on_message(self, c: Any, decoder: Decoder, message: Any) -> None:
        self._held.append((decoder, message))
        if not self._flushing:
            self._flushing = True
            c.call_soon(self._flush, c)

    def _flush(self, c: Any) -> None:
        """Ingest what has come, then acknowledge it; runs where the connection is read."""
        if self._stopped:
            return
        held, self._held = self._held, []
        items: list[NewJob | Rejection] = []
        ours: list[Any] = []
        for decoder, message in held:
            decoded = decoder.message(message)
            if isinstance(decoded, Builtin):
                self._stock(message)
            else:
                items.append(decoded)
                ours.append((decoder, message))
        bridge = _bridge(c.app)
        try:
            ingested = bridge.queue.ingest(items)
        except Unavailable as error:
            logger.warning("ingest waits, %d messages held: %s", len(ours), error)
            self._held = ours + self._held
            self._pause(c)
            return
        for _, message in ours:
            message.ack_log_error(logger, c.connection_errors)
        self._flushing = False
        bridge.revokes.apply(ingested)
        tell(ingested)
        for consumer in self.consumers or ():
            consumer.consume()  # those that run already are left alone

    def _pause(self, c: Any) -> None:
        for consumer in self.consumers or ():
            consumer.cancel()
        c.timer.call_after(AGAIN_S, c.call_soon, (self._flush, c))


def _bridge(app: Any) -> Bridge:
    found: Bridge = app.drawbridge
    return found


def _bounded(stock: Any) -> Any:
    """Return kombu's message class without its unbounded inflating; ``Decoder`` does that."""

    class Message(stock):
        """A message whose body is as it came."""

        def __init__(self, raw: Any, channel: Any = None, **options: Any) -> None:
            if isinstance(raw, dict):
                headers = raw.get("headers") or {}
            else:
                headers = raw.properties.get("application_headers") or {}
            self.compression = headers.pop("compression", None)
            super().__init__(raw, channel=channel, **options)

    return Message
