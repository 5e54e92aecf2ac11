"""The generations of a queue's index: which one counts, how the next is built and published."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis

from broker.errors import GenerationMoved, IndexDamaged
from broker.reservations.cluster import holder_of
from broker.reservations.keys import QueueKeys
from broker.reservations.server import Server
from broker.reservations.shapes import Placement, Sheaf, parts

log = logging.getLogger(__name__)

#: how long a builder may be silent before another takes over; claims wait for it
BUILDING_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Mark:
    """Up to when an index is whole, where that stands, and which server says so."""

    key: str
    moment: int
    server: str


class Generations(Server):
    """What a rebuild asks of Redis; nobody reads a generation before it is published."""

    def generation(self, queue: str) -> int | None:
        """Read which generation of a queue counts; None when the index is lost or never built."""
        try:
            with self._guard():
                value: Any = self.client.get(QueueKeys(queue).pointer)
            return None if value is None else int(value)
        except (IndexDamaged, ValueError):
            return None  # the next rebuild writes over it

    @contextmanager
    def _whole(self, queue: str, generation: int) -> Iterator[None]:
        """Guard a call on an index, and throw it away when it holds what is not ours.

        Whoever asks next finds it lost, and builds it anew under keys that nobody knows yet.
        """
        try:
            with self._guard():
                yield
        except (IndexDamaged, ValueError) as error:
            log.warning(
                "generation %s is damaged: %s", generation, error,
                extra={"action": "index", "queue": queue},
            )  # fmt: skip
            if self.generation(queue) == generation:
                with self._guard():
                    self.client.delete(QueueKeys(queue).pointer)
            raise GenerationMoved from error

    def start_building(self, queue: str, token: str) -> bool:
        """Become the one who rebuilds a queue's index; False while another is at it."""
        key = QueueKeys(queue).building
        with self._guard():
            if self.client.set(key, token, nx=True, px=BUILDING_MS):
                return True
            # one that would stay for ever is no builder's
            self.client.pexpire(key, BUILDING_MS, nx=True)
        return False

    def fill(
        self,
        queue: str,
        generation: int,
        token: str,
        sheaves: Iterable[Sheaf],
        *,
        specs: Sequence[str],
    ) -> None:
        """Put waiting jobs into a generation nobody reads yet, and lanes it does not know.

        ``GenerationMoved`` when the duty was lost.
        """
        keys = QueueKeys(queue, generation)
        args = [value for sheaf in sheaves for value in sheaf.args()]
        head = [token, keys.prefix, "", len(specs), *specs]
        with self._guard():
            self._scripts.call("fill", [keys.building, *keys.script_keys[1:]], head + args)
            self.client.pexpire(keys.building, BUILDING_MS)

    def build(
        self, queue: str, generation: int, token: str, placements: Sequence[Placement]
    ) -> None:
        """Fill a generation nobody reads yet; ``GenerationMoved`` when the duty was lost."""
        keys = QueueKeys(queue, generation)
        for part in parts(placements):
            args = [value for placement in part for value in placement.args()]
            # No channel: a claim woken now would find no generation; `publish` wakes for all.
            head = [token, keys.prefix, "", "", queue, 0]
            with self._guard():
                self._scripts.call("admit", [keys.building, *keys.script_keys[1:]], head + args)
                self.client.pexpire(keys.building, BUILDING_MS)

    def stop_building(self, queue: str, token: str) -> None:
        """Give the duty to rebuild back, unless it was lost by time to another."""
        key = QueueKeys(queue).building
        with self._guard():
            # between the two calls it may run out; then the next one starts once more
            if self.client.get(key) == token:
                self.client.delete(key)

    def publish(
        self, queue: str, generation: int, token: str, lanes: Mapping[str, int], *, mark_ms: int = 0
    ) -> None:
        """Make a built generation the one that counts, and wake claims for its lanes.

        ``mark_ms`` is up to when the ledger's changes are in it.
        """
        keys = QueueKeys(queue, generation)
        mark = f"{mark_ms}:{self._run_id(queue)}"
        args = [token, keys.prefix, "", keys.pointer, generation, mark]
        with self._guard():
            self._scripts.call("publish", [keys.building, *keys.script_keys[1:]], args)
            for lane, n in lanes.items():
                wake = json.dumps({"queue": queue, "lane": lane, "n": n})
                self.client.publish(keys.channel, wake)

    def sweep_generations(self, queue: str, current: int) -> int:
        """Remove the keys of every generation before the current one; returns how many.

        A later one may be in the making.
        """
        keys = QueueKeys(queue, current)
        removed = 0
        with self._guard():
            # the tag holds no glob characters: QUEUE_NAME forbids them
            for key in self.client.scan_iter(match=f"{keys.tag}g*:*", count=1000):
                if keys.generation_of(key) < current:
                    removed += int(self.client.unlink(key))
        return removed

    def mark(self, queue: str) -> int | None:
        """Read up to when the ledger's changes are in the index, epoch ms; None when it is lost.

        One that another server wrote counts as lost: restored from a file, taken over by a replica
        or moved to another node of a cluster, it may lack what came last, renewals of leases above
        all.
        """
        found = self._marked(queue)
        return None if found is None else found.moment

    def set_mark(self, queue: str, mark_ms: int) -> None:
        """Say that the ledger's changes are in the index up to a moment; a lost one stays lost."""
        found = self._marked(queue)
        if found is not None:
            with self._guard():
                self.client.set(found.key, f"{mark_ms}:{found.server}")

    def _marked(self, queue: str) -> _Mark | None:
        generation = self.generation(queue)
        if generation is None:
            return None
        key = QueueKeys(queue, generation).mark
        try:
            with self._guard():
                value: Any = self.client.get(key)
        except IndexDamaged:
            return None
        moment, _, server = (value or "").partition(":")
        # asked after the mark was read: a slot that moved meanwhile shows as another server
        here = self._run_id(queue) if server else ""
        return (
            _Mark(key, int(moment), here) if moment.isdecimal() and here in {server, ""} else None
        )

    def _run_id(self, queue: str) -> str:
        """Name the run of a queue's server; empty where one may not ask, as an edge."""
        with self._guard():
            try:
                node = holder_of(self.client, QueueKeys(queue).pointer)
                info: Any = self.client.info("server", **node)
            except redis.ResponseError:
                return ""
        return str(info.get("run_id", ""))
