"""The inbox in the Celery broker's Redis: a message is in its queue, in one inbox, or ingested.

``BRPOP`` would hold a message in the memory of one process alone, and a kill there loses it. So
every fetch is one atomic move into a list, the inbox, and the list is trimmed only after the ledger
has committed. An inbox belongs to one bridge process and one queue by a lease; when the lease
lapses, any bridge puts what lies there back to the front of the queue.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: an owner silent for so long has lost its inbox
LEASE_MS: Final = 5_000
BATCH: Final = 100
BATCH_BYTES: Final = 8 * 1024 * 1024
#: an unanswered command fails after this; longer than any wait of ours
TIMEOUT_S: Final = 5.0
#: an empty inbox nobody used for so long is forgotten
FORGET_S: Final = 24 * 3600

_INBOXES: Final = "drawbridge.inboxes"


def client_of(channel: Any) -> redis.Redis:
    """Return a client of our own on the server that a kombu channel talks to.

    It has timeouts and never sends a command twice, and it does not prefix keys by itself.
    """
    pool = channel.pool
    pool.connection_kwargs.update(
        socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
    return redis.Redis(connection_pool=pool)


class Inbox:
    """One bridge's inbox of one queue; used by one thread."""

    def __init__(self, channel: Any, queue: str, *, token: str, overflow: str) -> None:
        """Take keys and server from an open kombu channel; nothing is sent yet.

        ``token`` is the owner's, the same over reconnections and never anybody else's.
        """
        self.client = client_of(channel)
        self._prefix: str = channel.global_keyprefix
        self._token = token
        self._member = f"{self._token}:{queue}"
        self._lists = [
            self._prefix + channel._q_for_pri(queue, step)  # noqa: SLF001  kombu names its lists there
            for step in channel.priority_steps
        ]
        self._overflow = self._prefix + overflow
        folder = files("broker.bridge") / "lua"
        self._fetch, self._settle, self._give_back = (
            self.client.register_script((folder / f"{name}.lua").read_text())
            for name in ("fetch", "settle_inbox", "give_back")
        )

    def _owner(self, member: str) -> str:
        return f"{self._prefix}drawbridge.inbox-owner:{member}"

    def _list(self, member: str) -> str:
        return f"{self._prefix}drawbridge.inbox:{member}"

    def fetch(self, limit: int = BATCH) -> list[bytes]:
        """Move the next messages of the queue into the inbox and return them, oldest first."""
        keys = [self._owner(self._member), self._prefix + _INBOXES, self._list(self._member)]
        args: list[str | int] = [self._token, LEASE_MS, self._member, limit, BATCH_BYTES]
        return list(self._fetch(keys=[*keys, *self._lists], args=args))

    def wait(self, timeout_s: float) -> bytes | None:
        """Wait for a message on the queue's first list; it is in the inbox when returned."""
        seconds: Any = timeout_s  # redis-py says int, the server takes fractions
        raw: Any = self.client.blmove(
            self._lists[0], self._list(self._member), seconds, "RIGHT", "LEFT"
        )
        return None if raw is None else bytes(raw)

    def load(self) -> list[bytes]:
        """Renew the lease and return what lies in the inbox, oldest first."""
        self.fetch(0)
        raws: Any = self.client.lrange(self._list(self._member), 0, -1)
        return [bytes(raw) for raw in reversed(raws)]

    def settle(self, count: int, others: Sequence[bytes] = ()) -> bool:
        """Forget the oldest ``count`` messages, ``others`` of them to the overflow queue.

        False when the lease had lapsed: nothing was done, and what was ingested may come again.
        """
        keys = [self._owner(self._member), self._list(self._member), self._overflow]
        return bool(self._settle(keys=keys, args=[self._token, count, *others]))

    def rescue(self) -> int:
        """Put the messages of dead owners back to their queues; return how many."""
        moved = 0
        found: Any = self.client.zrange(self._prefix + _INBOXES, 0, -1, withscores=True)
        for raw, used_s in found:
            member = raw.decode()
            if member == self._member or self.client.exists(self._owner(member)):
                continue
            queue = member.partition(":")[2]
            keys = [self._owner(member), self._list(member), self._prefix + queue]
            moved += int(self._give_back(keys=keys))
            if used_s < time.time() - FORGET_S:
                self.client.zrem(self._prefix + _INBOXES, member)
        return moved

    def close(self) -> None:
        """Give up the lease, so that another bridge need not wait for its end."""
        self.client.delete(self._owner(self._member))
        if not self.client.exists(self._list(self._member)):
            self.client.zrem(self._prefix + _INBOXES, self._member)
