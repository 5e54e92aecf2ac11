"""The server or cluster with the reservations: how it is reached, and when it counts as away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import redis

from broker.errors import ReservationsUnavailable
from broker.reservations.addresses import client_of
from broker.reservations.cluster import NOT_WHOLE, holder_of
from broker.reservations.keys import (
    ENDED,
    LOADS,
    OFFLINE_MS,
    ONLINE,
    ORDERED,
    ORDERS,
    REVOKED,
    SEEN,
    WAKE_PATTERN,
    rate,
)
from broker.reservations.scripts import Scripts, refusal

#: after a call that timed out, others fail at once for as long
BREAK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """How a worker's orders stand: their cursor, and whether it drains."""

    cursor: int = 0
    drain: bool = False


class Server:
    """A connection to it, and what is asked of it that belongs to no queue."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        shebang: bool = True,
    ) -> None:
        """Use a client that never retries by itself (``connect`` makes one)."""
        self.client = client
        self._scripts = Scripts(client, shebang=shebang)
        self._down_until = 0.0

    @classmethod
    def connect(cls, url: str) -> Self:
        """Connect lazily.

        Raises:
            ConfigurationError: not the URL of a Redis.
        """
        return cls(client_of(url))

    def close(self) -> None:
        """Drop all connections."""
        self.client.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        if time.monotonic() < self._down_until:
            raise ReservationsUnavailable
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if isinstance(error, redis.TimeoutError):
                self._down_until = time.monotonic() + BREAK_S
            raise ReservationsUnavailable from error
        except NOT_WHOLE as error:
            raise ReservationsUnavailable(f"the cluster is not whole: {error}") from error
        except redis.ResponseError as error:
            # full memory, a replica, a slot on its way, a server that cannot write its own file
            raise refusal(error, "Redis refused") from error

    def clock_ms(self) -> float:
        """Read the server's clock; of a cluster that of the node that holds what all share."""
        with self._guard():
            answer: Any = self.client.time(**holder_of(self.client, SEEN))
        return int(answer[0]) * 1000 + int(answer[1]) / 1000

    def mark_seen(self, worker_id: str, now_ms: int, *, load: str | None = None) -> Told:
        """Remember when a worker was last seen, and its load; returns how its orders stand."""
        with self._guard():
            pipe = self.client.pipeline(transaction=False)
            pipe.zadd(SEEN, {worker_id: now_ms})
            pipe.zadd(ONLINE, {worker_id: now_ms})
            pipe.zscore(ORDERS, worker_id)
            if load is not None:
                pipe.hset(LOADS, worker_id, load)
            answer: Any = pipe.execute()
        cursor, drain = divmod(int(answer[2] or 0), 2)
        return Told(cursor, bool(drain))

    def mark_gone(self, worker_id: str) -> None:
        """Let a worker be offline until it is seen again."""
        with self._guard():
            self.client.zrem(ONLINE, worker_id)

    def online(self, now_ms: int) -> list[str]:
        """List the workers that were seen of late and have not said goodbye."""
        with self._guard():
            found: Any = self.client.zrangebyscore(ONLINE, now_ms - OFFLINE_MS, "+inf")
        return list(found)

    def tell(self, worker_id: str, told: Told) -> None:
        """Let every edge know how a worker's orders stand; what is older changes nothing."""
        with self._guard():
            self.client.zadd(ORDERS, {worker_id: 2 * told.cursor + told.drain}, gt=True)
            self.client.publish(ORDERED, worker_id)

    def last_seen(self, *, limit: int) -> dict[str, float]:
        """Read when workers were last seen, epoch ms, the latest first."""
        with self._guard():
            rows: Any = self.client.zrange(SEEN, 0, limit - 1, desc=True, withscores=True)
        return {worker_id: float(at_ms) for worker_id, at_ms in rows}

    def revoke(self, credential_id: str) -> None:
        """Remember a revoked credential, for edges that cannot reach the ledger."""
        with self._guard():
            self.client.sadd(REVOKED, credential_id)

    def is_revoked(self, credential_id: str) -> bool:
        """Tell whether a credential was revoked."""
        with self._guard():
            return bool(self.client.sismember(REVOKED, credential_id))

    def tally(self, name: str, amount: int, *, keep_s: int) -> int:
        """Add to a count that is kept for a while, and return it; a repeat counts again."""
        with self._guard():
            pipe = self.client.pipeline(transaction=False)
            pipe.incrby(rate(name), amount)
            pipe.pexpire(rate(name), keep_s * 1000)
            answer: Any = pipe.execute()
        return int(answer[0])

    def wakes(self, *, timeout_s: float = 1.0) -> Iterator[tuple[str, str, int] | str | None]:
        """Yield wake-ups for ever, and None when nothing came for a while.

        (queue, lane, n) when there are jobs, a worker's id when it has new orders.

        Ends by ``ReservationsUnavailable``; pub/sub may drop messages, so waiters look by
        themselves now and then.
        """
        for message in self._messages(ORDERED, WAKE_PATTERN, timeout_s=timeout_s):
            if message is None:
                yield None
            elif message["type"] == "message":
                yield str(message["data"])
            else:
                data = json.loads(message["data"])
                yield data["queue"], data["lane"], int(data["n"])

    def endings(self, *, timeout_s: float = 0.5) -> Iterator[bool]:
        """Yield True whenever jobs have ended, and False when none did for a while.

        Ends by ``ReservationsUnavailable``; some go unheard.
        """
        for message in self._messages(ENDED, timeout_s=timeout_s):
            yield message is not None

    def _messages(
        self, channel: str, *patterns: str, timeout_s: float
    ) -> Iterator[dict[str, Any] | None]:
        with self._guard():
            pubsub = self.client.pubsub(  # type: ignore[no-untyped-call]
                ignore_subscribe_messages=True
            )
            pubsub.subscribe(channel)
            if patterns:
                pubsub.psubscribe(*patterns)
        try:
            while True:
                with self._guard():
                    message: Any = pubsub.get_message(timeout=timeout_s)
                known = message is not None and message["type"] in {"message", "pmessage"}
                yield message if known else None
        finally:
            pubsub.close()
