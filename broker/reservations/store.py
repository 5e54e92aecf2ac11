"""The reservations as Python calls: one method a script, generations and lanes kept in mind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis

from broker.errors import GenerationMoved, ReservationsUnavailable
from broker.policy import Lane
from broker.reservations.generations import Generations
from broker.reservations.keys import QueueKeys
from broker.reservations.lanes import KnownLanes, Sight
from broker.reservations.scripts import LanesMoved
from broker.reservations.shapes import Due, Placement, Renewed, Reserved, parts
from broker.states import Index

log = logging.getLogger(__name__)

#: between reserve and the ledger's word
GRANT_HOLD_MS: Final = 10_000
#: a sweep that died is resumed after this
EXPIRING_AGAIN_MS: Final = 10_000


class Reservations(Generations):
    """All that is asked of Redis; every call may raise ``ReservationsUnavailable``."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        shebang: bool = True,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """Use a client that never retries by itself (``connect`` makes one).

        ``now_ms`` replaces the server's clock in tests.
        """
        super().__init__(client, shebang=shebang)
        self._now_ms = now_ms
        self._known: dict[str, KnownLanes] = {}
        self._lock = threading.Lock()

    # -- generations and lanes ---------------------------------------------------------------

    def _get_known(self, queue: str, *, fresh: bool = False) -> KnownLanes:
        known = self._known.get(queue)
        if known is None or fresh:
            generation = self.generation(queue)
            if generation is None:
                raise GenerationMoved
            with self._lock:
                known = self._known.get(queue)
                if known is None or known.generation != generation:
                    known = self._known[queue] = KnownLanes(generation)
        return known

    def _call(
        self,
        name: str,
        queue: str,
        args: Callable[[KnownLanes], list[Any]],
    ) -> Any:
        """Run a script in the generation that counts, once more if ours was old."""
        moment = "" if self._now_ms is None else self._now_ms()
        for fresh in (False, True):
            known = self._get_known(queue, fresh=fresh)
            keys = QueueKeys(queue, known.generation)
            head = [known.generation, keys.prefix, moment]
            try:
                with self._whole(queue, known.generation):
                    return self._scripts.call(name, keys.script_keys, head + args(known))
            except GenerationMoved:
                if fresh:
                    raise
        raise GenerationMoved

    def _learn_lanes(self, queue: str, known: KnownLanes) -> None:
        prefix = QueueKeys(queue, known.generation).prefix
        with self._whole(queue, known.generation):
            # first the count: lanes that come after it are learnt too early, none too late
            count: Any = self.client.get(prefix + "lanes_ver")
            version = int(count or 0)
            # a count that fell was lost, and what it has counted since is new
            after = known.version if version > known.version else 0
            rows: Any = self.client.zrangebyscore(prefix + "lanes", f"({after}", "+inf")
            with self._lock:
                known.learn(rows, version)

    def lane(self, queue: str, key: str) -> Lane | None:
        """Look a lane up by its key, asking Redis when it is new to this process.

        None when it is not known, as in the moment in which an index is built anew.
        """
        try:
            for fresh in (False, True):
                known = self._get_known(queue, fresh=fresh)
                if key not in known.lanes:
                    self._learn_lanes(queue, known)
                if key in known.lanes:
                    return known.lanes[key]
        except GenerationMoved:
            pass
        return None

    def _told(self, known: KnownLanes, sight: Sight) -> tuple[int, str, str]:
        with self._lock:
            return known.version, *known.told(sight)

    # -- the scripts -------------------------------------------------------------------------

    def admit(
        self,
        queue: str,
        placements: Sequence[Placement],
        *,
        force: bool = False,
    ) -> int:
        """Put jobs where the ledger says they belong; admit.lua."""
        head = [QueueKeys(queue).channel, queue, int(force)]
        return sum(
            int(self._call("admit", queue, lambda _, a=args: head + a))  # type: ignore[misc]
            for args in (
                [value for placement in part for value in placement.args()]
                for part in parts(placements)
            )
        )

    def drop(self, queue: str, versions: Sequence[tuple[str, int]]) -> int:
        """Forget ended jobs, each by id and version; drop.lua."""
        return sum(
            int(self._call("drop", queue, lambda _, a=args: a))  # type: ignore[misc]
            for args in ([v for pair in part for v in pair] for part in parts(versions))
        )

    def forget(self, queue: str, job_ids: Sequence[str]) -> None:
        """Drop entries of jobs that the ledger never had or has forgotten."""
        # above any version a job can reach: numbers stay exact in Lua below 2**53
        self.drop(queue, [(job_id, 2**53) for job_id in job_ids])

    def reserve(
        self,
        queue: str,
        sight: Sight,
        *,
        lease_id: str,
        worker_id: str,
        limit: int = 1,
    ) -> Reserved:
        """Hold the best ready jobs of the lanes a worker may see; reserve.lua."""
        channel = QueueKeys(queue).channel
        used = self._get_known(queue)

        def args(known: KnownLanes) -> list[Any]:
            nonlocal used
            used = known
            version, how, lanes = self._told(known, sight)
            return [
                version, lease_id, worker_id, GRANT_HOLD_MS, limit, channel, queue, how, lanes,
            ]  # fmt: skip

        now, overdue, *held = self._with_lanes("reserve", queue, args)
        lanes = dict(zip(held[::2], held[1::2], strict=True))
        ids = tuple(job_id for job_id, key in lanes.items() if used.allows(sight, key))
        if len(ids) < len(lanes):
            log.warning("lanes that nobody judged", extra={"action": "claim", "queue": queue})
            with self._lock:
                self._known.pop(queue, None)
        return Reserved(int(now), int(overdue), ids)

    def head(self, queue: str, sight: Sight) -> tuple[int, str] | None:
        """Name (rank, member) of the best ready job a worker may see; heads.lua."""
        channel = QueueKeys(queue).channel

        def args(known: KnownLanes) -> list[Any]:
            version, how, lanes = self._told(known, sight)
            return [version, channel, queue, how, lanes]

        best = self._with_lanes("heads", queue, args)
        return None if best is None else (int(best[0]), best[1])

    def mend(self, queue: str, *, at: int, limit: int) -> tuple[int, int]:
        """See that the heads of some lanes are right, from a place among them; mend.lua.

        Returns how many were not, and the place to go on from: 0 when all were looked at.
        """
        known = self._get_known(queue)
        self._learn_lanes(queue, known)
        with self._lock:
            keys = sorted(known.lanes)
        lanes = keys[at : at + limit]
        mended = int(self._call("mend", queue, lambda _: [at, limit, *lanes]))
        return mended, at + limit if len(keys) > at + limit else 0

    def _with_lanes(
        self,
        name: str,
        queue: str,
        args: Callable[[KnownLanes], list[Any]],
    ) -> Any:
        for _ in range(5):
            try:
                return self._call(name, queue, args)
            except LanesMoved:
                self._learn_lanes(queue, self._get_known(queue))
        raise ReservationsUnavailable("the lane table grows faster than it can be read")

    def confirm(
        self,
        queue: str,
        jobs: Sequence[tuple[str, int, str]],
        *,
        lease_id: str,
        index: Index,
        hold_ms: int,
        lease_ms: int,
    ) -> int:
        """Give granted jobs (id, version, json) their deadline; confirm.lua."""
        args = [lease_id, str(index), hold_ms, lease_ms, *(v for job in jobs for v in job)]
        return int(self._call("confirm", queue, lambda _: args))

    def renew(
        self,
        queue: str,
        job_id: str,
        *,
        lease_id: str | None,
        worker_id: str,
        lease_ms: int | None,
        progress: str = "",
    ) -> Renewed | None:
        """Extend a lease, or with ``lease_ms=None`` take its grant up; None: ask the ledger.

        ``progress`` is kept beside it until the job is let go.
        """
        args = [job_id, lease_id or "", worker_id, "" if lease_ms is None else lease_ms, progress]
        answer = self._call("renew", queue, lambda _: args)
        return None if answer is None else Renewed(int(float(answer[0])), answer[1], answer[2])

    def progress(self, queue: str, held: Mapping[str, str]) -> dict[str, str]:
        """Read what holders said of their progress, of jobs named with their leases."""
        known = self._get_known(queue)
        prefix = QueueKeys(queue, known.generation).prefix
        with self._whole(queue, known.generation):
            pipe = self.client.pipeline(transaction=False)
            for job_id in held:
                pipe.hget(f"{prefix}job:{job_id}", "progress")
            said: Any = pipe.execute()
        found = {}
        for (job_id, lease_id), text in zip(held.items(), said, strict=True):
            lease, _, json = (text or "").partition(" ")
            if json and lease == lease_id:
                found[job_id] = json
        return found

    def progressed(self, queue: str, *, limit: int) -> dict[str, tuple[str, str]]:
        """Take jobs whose holders said something new: by id the lease and the json they said."""
        known = self._get_known(queue)
        prefix = QueueKeys(queue, known.generation).prefix
        with self._whole(queue, known.generation):
            ids: Any = self.client.spop(f"{prefix}progressed", limit)
            pipe = self.client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hget(f"{prefix}job:{job_id}", "progress")
            said: Any = pipe.execute()
        parted = (
            (job_id, (text or "").partition(" ")) for job_id, text in zip(ids, said, strict=True)
        )
        return {job_id: (lease, json) for job_id, (lease, _, json) in parted if json}

    def tell_again(self, queue: str, job_ids: Sequence[str]) -> None:
        """Name jobs whose progress was taken and could not be told."""
        known = self._get_known(queue)
        prefix = QueueKeys(queue, known.generation).prefix
        with self._whole(queue, known.generation):
            self.client.sadd(f"{prefix}progressed", *job_ids)

    def due(self, queue: str, *, limit: int) -> tuple[int, list[Due]]:
        """Name overdue grants and leases, with the server's clock; due.lua."""
        args = [limit, EXPIRING_AGAIN_MS]
        now, *rest = self._call("due", queue, lambda _: args)
        triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        return int(now), [Due(id, lease, Index(index)) for id, lease, index in triples]  # noqa: A001

    def promote(self, queue: str, *, limit: int) -> int:
        """Make due scheduled jobs ready; promote.lua."""
        args = [QueueKeys(queue).channel, queue, limit]
        return int(self._call("promote", queue, lambda _: args))
