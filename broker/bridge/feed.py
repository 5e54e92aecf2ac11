"""How messages leave a broker that hands them out: into the ledger, and only then acknowledged.

A message is unacknowledged until the ledger has it, so whoever dies, the broker delivers it again
and the ledger knows it by its task id. Nothing is ever rejected back to the queue: that would count
against its delivery limit, and kill good messages while the ledger is away.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from amqp import serialization
from kombu.messaging import Consumer

from broker.bridge.decode import Builtin, Decoded
from broker.bridge.fetch import COUNT_S, tell
from broker.bridge.runtime import Bridge
from broker.errors import Unavailable
from broker.records import NewJob, Rejection

logger = logging.getLogger(__name__)

#: messages a queue may have with us unacknowledged
PREFETCH: Final = 100
#: pause before what the ledger did not take is offered to it again
AGAIN_S: Final = 1.0
#: pause before a queue that is not there is looked for again
LOOK_S: Final = 5.0
#: the class of AMQP's methods on messages, by which py-amqp files how it reads their properties
_BASIC: Final = 60


class Feed:
    """Ingests one queue, on a channel of its own, where Celery's consumer reads its connection."""

    def __init__(
        self, c: Any, bridge: Bridge, name: str, *, execute: Callable[[Any], None]
    ) -> None:
        """Feed from Celery's consumer ``c``; Celery's own tasks go to ``execute``."""
        self._c = c
        self._bridge = bridge
        self.name = name
        self._execute = execute
        self._decoder = bridge.decoder(name)
        self._ahead = bridge.read_ahead(name)
        #: kept, since Celery forgets a connection that is lost before it stops what was on it
        self._errors = (*c.connection.connection_errors, *c.connection.channel_errors)
        self.consumer: Any = None
        self._held: list[Any] = []
        #: whether a flush is on its way
        self._due = False
        self._closed = False

    def begin(self) -> None:
        """Begin to consume, at once or when the queue is there."""
        if self._closed:
            return
        for declare in (True, False) if self._bridge.settings.bridge.declare_queues else (False,):
            channel = self._c.connection.channel()
            # what a body's bytes mean is for the decoder to say
            channel.auto_decode = False
            channel.Message = _bounded(channel.Message)
            queue: Any = self._bridge.app.amqp.queues[self.name](channel)
            try:
                if declare:
                    queue.declare()
                else:
                    queue.queue_declare(passive=True)
            except self._c.connection.channel_errors as error:
                said = "is there, and is not ours to declare" if declare else "is not there yet"
                logger.warning("the bridged queue %s %s: %s", self.name, said, error)
                self._quietly(channel.close)
            else:
                self._consume(channel, queue)
                return
        self._c.timer.call_after(LOOK_S, self.begin)

    def close(self) -> None:
        """Stop consuming; what is held comes again from the broker."""
        self._closed, self._held = True, []
        if self.consumer is not None:
            self._quietly(self.consumer.cancel)
            self._quietly(self.consumer.channel.close)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Take no more for a moment; at its end what had come is in the ledger, or held."""
        if self.consumer is not None:
            # returns when the broker has: what it sent before is here by then
            self.consumer.cancel()
        try:
            yield
        finally:
            if self.consumer is not None:
                self._flush()

    def _consume(self, channel: Any, queue: Any) -> None:
        make: Any = Consumer
        self.consumer = make(
            channel,
            [queue],
            on_message=self._on_message,
            auto_declare=False,
            accept=self._bridge.app.conf.accept_content,
            prefetch_count=PREFETCH,
        )
        self.consumer.consume()

    def _quietly(self, end: Callable[[], Any]) -> None:
        with suppress(*self._errors):
            end()

    def _on_message(self, message: Any) -> None:
        self._held.append(message)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            self._c.call_soon(self._flush)

    def _flush(self) -> None:
        """Order: ledger, then the broker; a crash between the two gives duplicates, seen by id."""
        self._due = False
        if self._closed:
            return
        held, self._held = self._held, []
        ours = [(message, decoded) for message in held if (decoded := self._decode(message))]
        try:
            room = self._ingest([decoded for _, decoded in ours])
        except Exception as error:  # the messages must be held, whatever it is
            outage = isinstance(error, Unavailable)
            logger.log(
                logging.WARNING if outage else logging.ERROR,
                "ingest waits, %d messages of %s held: %s", len(ours), self.name, error,
                exc_info=None if outage else error, extra={"action": "ingest"},
            )  # fmt: skip
            self._held = [message for message, _ in ours] + self._held
            self._pause(AGAIN_S)
            return
        for message, _ in ours:
            message.ack_log_error(logger, self._c.connection_errors)
        if room > 0:
            self.consumer.consume()  # if it runs already it is left alone
        else:
            self._pause(COUNT_S)

    def _decode(self, message: Any) -> NewJob | Rejection | None:
        """Read a message; None when it is Celery's own, and on its way to be executed."""
        decoded: Decoded = self._decoder.message(message)
        if not isinstance(decoded, Builtin):
            return decoded
        message.body = decoded.body
        self._execute(message)
        return None

    def _ingest(self, items: list[NewJob | Rejection]) -> int:
        """Ingest, and return how many more the ledger has room for."""
        ingested = self._bridge.queue.ingest(items)
        self._bridge.revokes.apply(ingested)
        self._ahead.add(len(ingested))
        tell(ingested)
        return self._ahead.room()

    def _pause(self, pause_s: float) -> None:
        """Ask for no more, and look again later; what is under way is held."""
        self.consumer.cancel()
        # through call_soon, whose errors are the connection's: a timer would swallow them
        self._c.timer.call_after(pause_s, self._flush_soon)


def survive_properties() -> None:
    """Make this process outlive properties that py-amqp cannot read.

    A date beyond the year 9999 or a name that is no UTF-8 is an error where frames are read, and
    ends the worker; the broker then delivers the message to the next one.
    """
    serialization.PROPERTY_CLASSES[_BASIC] = _readable


def _readable(buf: Any, offset: int) -> tuple[dict[str, Any], int]:
    try:
        properties: dict[str, Any]
        properties, offset = serialization.decode_properties_basic(buf, offset)
    except (ValueError, OverflowError, OSError, RecursionError, struct.error) as error:
        logger.warning("the properties of a message cannot be read: %s", error)
        return {}, offset
    return properties, offset


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
