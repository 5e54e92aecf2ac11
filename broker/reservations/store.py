"""The reservations as Python calls: one method a script, generations and lanes kept in mind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.errors import ConfigurationError, GenerationMoved, ReservationsUnavailable
from broker.policy import Lane
from broker.reservations.keys import REVOKED, SEEN, WAKE_PATTERN, QueueKeys
from broker.reservations.scripts import LanesMoved, Scripts
from broker.states import Index

#: between reserve and the ledger's word
GRANT_HOLD_MS: Final = 10_000
#: a sweep that died is resumed after this
EXPIRING_AGAIN_MS: Final = 10_000
#: after a call that timed out, others fail at once for as long
BREAK_S: Final = 1.0
#: jobs per script call; Lua's stack ends near 8,000 values
BATCH: Final = 200
#: how long a builder may be silent before another takes over; claims wait for it
BUILDING_MS: Final = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the ledger says a live job belongs."""

    id: str
    index: Index
    #: ready again or lease ends, epoch ms; unused for ready
    at_ms: int
    version: int
    lane: Lane
    member: str
    priority: int
    lease_id: str = ""
    worker_id: str = ""
    lease_ms: int = 0
    cancel: str = ""
    json: str = ""

    def args(self) -> list[Any]:
        """Return it as admit.lua reads it."""
        return [
            self.id, str(self.index), self.at_ms, self.version, self.lane.key, self.lane.spec(),
            self.member, -self.priority, self.lease_id, self.worker_id, self.lease_ms,
            self.cancel, self.json,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reserved:
    """What reserve.lua held: the server's clock, how much is overdue, and the job ids."""

    now_ms: int
    overdue: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease extended in Redis alone."""

    deadline_ms: int
    job: str
    cancel: str


@dataclass(frozen=True, slots=True)
class Due:
    """A grant or lease past its deadline."""

    id: str
    lease_id: str
    index: Index


@dataclass(slots=True)
class _Known:
    """What this process remembers of one queue."""

    generation: int
    lanes_ver: int = 0
    lanes: dict[str, Lane] = field(default_factory=dict)


class Reservations:
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
        self._now_ms = now_ms
        self.client = client
        self._scripts = Scripts(client, shebang=shebang)
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._down_until = 0.0

    @classmethod
    def connect(cls, url: str) -> Reservations:
        """Connect lazily; redis-py's own retries would run a script again whose reply came late.

        Raises:
            ConfigurationError: not the URL of a Redis.
        """
        try:
            client: redis.Redis = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=2.0,
                socket_connect_timeout=2.0,
                health_check_interval=15,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            raise ConfigurationError(
                "The reservations URL cannot be read; write redis://host:port/db"
            ) from None
        return cls(client)

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
        except redis.ResponseError as error:
            # full memory, a replica, a server that cannot write its own file
            raise ReservationsUnavailable(f"Redis refused: {error}") from error

    # -- generations and lanes ---------------------------------------------------------------

    def generation(self, queue: str) -> int | None:
        """Read which generation of a queue counts; None when the index is lost or never built."""
        with self._guard():
            value: Any = self.client.get(QueueKeys(queue).pointer)
        return None if value is None else int(value)

    def _get_known(self, queue: str, *, fresh: bool = False) -> _Known:
        known = self._known.get(queue)
        if known is None or fresh:
            generation = self.generation(queue)
            if generation is None:
                raise GenerationMoved
            with self._lock:
                known = self._known.get(queue)
                if known is None or known.generation != generation:
                    known = self._known[queue] = _Known(generation)
        return known

    def _call(
        self,
        name: str,
        queue: str,
        args: Callable[[_Known], list[Any]],
    ) -> Any:
        """Run a script in the generation that counts, once more if ours was old."""
        moment = "" if self._now_ms is None else self._now_ms()
        for fresh in (False, True):
            known = self._get_known(queue, fresh=fresh)
            keys = QueueKeys(queue, known.generation)
            head = [known.generation, keys.prefix, moment]
            try:
                with self._guard():
                    return self._scripts.call(name, keys.script_keys, head + args(known))
            except GenerationMoved:
                if fresh:
                    raise
        raise GenerationMoved

    def _learn_lanes(self, queue: str, known: _Known) -> None:
        keys = QueueKeys(queue, known.generation)
        with self._guard():
            rows: Any = self.client.zrangebyscore(
                keys.prefix + "lanes", f"({known.lanes_ver}", "+inf", withscores=True
            )
        with self._lock:
            for spec, version in rows:
                lane = Lane.from_spec(spec)
                known.lanes[lane.key] = lane
                known.lanes_ver = max(known.lanes_ver, int(version))

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

    def _matching(self, known: _Known, allows: Callable[[Lane], bool]) -> list[Lane]:
        with self._lock:
            lanes = list(known.lanes.values())
        return [lane for lane in lanes if allows(lane)]

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
                for part in _parts(placements)
            )
        )

    def drop(self, queue: str, versions: Sequence[tuple[str, int]]) -> int:
        """Forget ended jobs, each by id and version; drop.lua."""
        return sum(
            int(self._call("drop", queue, lambda _, a=args: a))  # type: ignore[misc]
            for args in ([v for pair in part for v in pair] for part in _parts(versions))
        )

    def forget(self, queue: str, job_ids: Sequence[str]) -> None:
        """Drop entries of jobs that the ledger never had or has forgotten."""
        # above any version a job can reach: numbers stay exact in Lua below 2**53
        self.drop(queue, [(job_id, 2**53) for job_id in job_ids])

    def reserve(
        self,
        queue: str,
        allows: Callable[[Lane], bool],
        *,
        lease_id: str,
        worker_id: str,
        limit: int = 1,
    ) -> Reserved:
        """Hold the best ready jobs of the lanes a worker may see; reserve.lua."""
        channel = QueueKeys(queue).channel

        def args(known: _Known) -> list[Any]:
            lanes = [lane.key for lane in self._matching(known, allows)]
            return [
                known.lanes_ver, lease_id, worker_id, GRANT_HOLD_MS, limit, channel, queue, *lanes,
            ]  # fmt: skip

        now, overdue, *ids = self._with_lanes("reserve", queue, args)
        return Reserved(int(now), int(overdue), tuple(ids))

    def head(self, queue: str, allows: Callable[[Lane], bool]) -> tuple[int, str] | None:
        """Name (rank, member) of the best ready job a worker may see; heads.lua."""
        channel = QueueKeys(queue).channel

        def args(known: _Known) -> list[Any]:
            lanes = [lane.key for lane in self._matching(known, allows)]
            return [known.lanes_ver, channel, queue, *lanes]

        best = self._with_lanes("heads", queue, args)
        return None if best is None else (int(best[0]), best[1])

    def _with_lanes(
        self,
        name: str,
        queue: str,
        args: Callable[[_Known], list[Any]],
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
    ) -> Renewed | None:
        """Extend a lease, or with ``lease_ms=None`` take its grant up; None: ask the ledger."""
        args = [job_id, lease_id or "", worker_id, "" if lease_ms is None else lease_ms]
        answer = self._call("renew", queue, lambda _: args)
        return None if answer is None else Renewed(int(float(answer[0])), answer[1], answer[2])

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

    # -- rebuild -----------------------------------------------------------------------------

    def start_building(self, queue: str, token: str) -> bool:
        """Become the one who rebuilds a queue's index; False while another is at it."""
        with self._guard():
            return bool(self.client.set(QueueKeys(queue).building, token, nx=True, px=BUILDING_MS))

    def build(
        self, queue: str, generation: int, token: str, placements: Sequence[Placement]
    ) -> None:
        """Fill a generation nobody reads yet; ``GenerationMoved`` when the duty was lost."""
        keys = QueueKeys(queue, generation)
        for part in _parts(placements):
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
        mark = f"{mark_ms}:{self._run_id()}"
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

        One that another server wrote counts as lost: restored from a file or taken over by a
        replica it may lack what came last, renewals of leases above all.
        """
        generation = self.generation(queue)
        if generation is None:
            return None
        with self._guard():
            value: Any = self.client.get(QueueKeys(queue, generation).mark)
        moment, _, server = (value or "").partition(":")
        here = self._run_id() if server else ""
        return int(moment) if moment and here in {server, ""} else None

    def set_mark(self, queue: str, mark_ms: int) -> None:
        """Say that the ledger's changes are in the index up to a moment."""
        generation = self.generation(queue)
        if generation is not None:
            with self._guard():
                self.client.set(QueueKeys(queue, generation).mark, f"{mark_ms}:{self._run_id()}")

    def _run_id(self) -> str:
        """Name the server's run; empty where one may not ask, as an edge."""
        with self._guard():
            try:
                info: Any = self.client.info("server")
            except redis.ResponseError:
                return ""
        return str(info.get("run_id", ""))

    # -- what belongs to no queue ------------------------------------------------------------

    def clock_ms(self) -> float:
        """Read the server's clock."""
        with self._guard():
            answer: Any = self.client.time()
        return int(answer[0]) * 1000 + int(answer[1]) / 1000

    def mark_seen(self, worker_id: str, now_ms: int) -> None:
        """Remember when a worker was last seen."""
        with self._guard():
            self.client.zadd(SEEN, {worker_id: now_ms})

    def revoke(self, credential_id: str) -> None:
        """Remember a revoked credential, for edges that cannot reach the ledger."""
        with self._guard():
            self.client.sadd(REVOKED, credential_id)

    def is_revoked(self, credential_id: str) -> bool:
        """Tell whether a credential was revoked."""
        with self._guard():
            return bool(self.client.sismember(REVOKED, credential_id))

    def wakes(self, *, timeout_s: float = 1.0) -> Iterator[tuple[str, str, int] | None]:
        """Yield wake-ups (queue, lane, n) for ever, and None when nothing came for a while.

        Ends by ``ReservationsUnavailable``; pub/sub may drop messages, so waiters look by
        themselves now and then.
        """
        with self._guard():
            pubsub = self.client.pubsub(  # type: ignore[no-untyped-call]
                ignore_subscribe_messages=True
            )
            pubsub.psubscribe(WAKE_PATTERN)
        try:
            while True:
                with self._guard():
                    message: Any = pubsub.get_message(timeout=timeout_s)
                if message is None or message["type"] != "pmessage":
                    yield None
                    continue
                data = json.loads(message["data"])
                yield data["queue"], data["lane"], int(data["n"])
        finally:
            pubsub.close()


def _parts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))
