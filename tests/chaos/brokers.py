"""How the suite speaks to the Celery broker itself: raw messages in, what is left, links out.

Redis or RabbitMQ, told apart by the address. Imports nothing of the product.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import amqp
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: What a broker that is away is reported by.
AWAY: Final = (redis.RedisError, amqp.AMQPError, OSError)
ANSWER_S: Final = 5.0
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A message as a producer of whatever kind may send it; without an id it is no task's."""

    task_id: str | None
    body: bytes
    content_type: str = JSON
    #: of the broker's own, so that two are never the same
    tag: str

    def headers(self) -> dict[str, str]:
        """Return Celery's."""
        return {} if self.task_id is None else {"id": self.task_id, "task": "echo"}


class Broker(Protocol):
    """What is asked of either."""

    def declare(self, *queues: str) -> None:
        """Make sure that the queues are there."""

    def push(self, queue: str, raw: Raw) -> None:
        """Send a message; it is there for good when this returns."""

    def left(self, queue: str) -> int:
        """Count the messages of a queue that nobody has put into a ledger."""

    def headers(self, queue: str) -> list[Mapping[str, Any]]:
        """Read the headers of all messages of a queue."""


def broker_at(url: str) -> Broker:
    """Return the broker at an address."""
    return Rabbit(url) if url.startswith("amqp") else Redis(url)


def redis_at(url: str) -> redis.Redis:
    """Connect; nothing is ever sent twice."""
    return redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=ANSWER_S, retry=Retry(NoBackoff(), 0)
    )


class Redis:
    """A list a queue and priority, and the bridges' inboxes."""

    def __init__(self, url: str) -> None:
        self._url = url

    def declare(self, *queues: str) -> None:
        """Do nothing: a list is there when it holds something."""

    def push(self, queue: str, raw: Raw) -> None:
        """Send a message as kombu writes it."""
        message = {
            "body": base64.b64encode(raw.body).decode(),
            "content-encoding": "utf-8",
            "content-type": raw.content_type,
            "headers": raw.headers(),
            "properties": {
                "correlation_id": raw.task_id, "delivery_mode": 2, "priority": 0,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "body_encoding": "base64", "delivery_tag": raw.tag,
            },
        }  # fmt: skip
        text = json.dumps(message) if raw.task_id else f"no message at all: {raw.tag}"
        with redis_at(self._url) as client:
            client.lpush(queue, text)

    def left(self, queue: str) -> int:
        """Count what lies in the lists of all priorities, and in inboxes."""
        with redis_at(self._url) as client:
            keys = [queue, *client.keys(f"{queue}\x06*"), *client.keys("drawbridge.inbox:*")]
            counted: Any = [client.llen(key) for key in keys]
            return sum(counted)

    def headers(self, queue: str) -> list[Mapping[str, Any]]:
        """Read what kombu wrote."""
        with redis_at(self._url) as client:
            found: Any = client.lrange(queue, 0, -1)
        return [json.loads(raw)["headers"] for raw in found]


class Rabbit:
    """Durable classic queues, each bound to an exchange of its name, as Celery declares them."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = f"{parts.hostname}:{parts.port}"

    def declare(self, *queues: str) -> None:
        """Declare them; what is sent to a queue that is not there is nobody's."""
        lasting = {"durable": True, "auto_delete": False}
        with self._channel() as channel:
            for queue in queues:
                channel.exchange_declare(queue, "direct", **lasting)
                channel.queue_declare(queue, **lasting)
                channel.queue_bind(queue, queue, queue)

    def push(self, queue: str, raw: Raw) -> None:
        """Publish a message and wait until it is confirmed."""
        body = raw.body if raw.task_id else f"no message at all: {raw.tag}".encode()
        message = amqp.Message(
            body, content_type=raw.content_type, content_encoding="utf-8", delivery_mode=2,
            application_headers=raw.headers(), correlation_id=raw.task_id or "",
        )  # fmt: skip
        with self._channel() as channel:
            channel.basic_publish(message, exchange=queue, routing_key=queue)

    def left(self, queue: str) -> int:
        """Count what is ready; what a bridge holds comes back when it lets go of it."""
        with self._channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def headers(self, queue: str) -> list[Mapping[str, Any]]:
        """Take out what lies there."""
        found = []
        with self._channel() as channel:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(message.properties["application_headers"])
        return found

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = amqp.Connection(
            self._host, connect_timeout=ANSWER_S, read_timeout=ANSWER_S, confirm_publish=True
        )
        try:
            connection.connect()
            yield connection.channel()
        finally:
            connection.collect()
