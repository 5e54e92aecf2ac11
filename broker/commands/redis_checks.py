"""What ``drawbridge doctor`` asks of the reservations, and of the Redis servers beside them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker.commands.findings import Finding, Level, age, ok, problem, skipped
from broker.commands.ledger_checks import offset
from broker.errors import ReservationsUnavailable
from broker.reservations.cluster import nodes_of, uncovered
from broker.reservations.keys import BEAT, QueueKeys, owner
from broker.reservations.store import Reservations

VERSION_MIN: Final = (7, 0)
#: reconcile runs every 5 s
PASS_MAX_S: Final = 30.0
#: leases are swept every second
LAG_MAX_S: Final = 10.0
TIMEOUT_S: Final = 2.0
#: of several nodes the worst is told
_GRAVITY: Final = (Level.OK, Level.SKIPPED, Level.NOTICE, Level.PROBLEM)
_REDIS: Final = frozenset({"redis", "rediss", "unix"})
#: how kombu writes a socket's path
_SOCKET: Final = "redis+socket"
_START_BRIDGE: Final = "Start `drawbridge bridge`, or see in its log what it waits for."


def place(url: str) -> str:
    """Name a server without what its URL keeps secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def server(url: str, others: Mapping[str, str]) -> Iterator[Finding]:
    """Look whether the reservations answer and whether their server is fit for them.

    ``others`` are the URLs of Celery's own servers, by what each is called.
    """
    client: Any = Reservations.connect(url).client
    runs: set[str] = set()
    found: dict[str, list[Finding]] = defaultdict(list)
    try:
        for name, node in nodes_of(client).items():
            for one in _node(node, runs):
                said = f"{name}: {one.message}" if name else one.message
                found[one.check].append(replace(one, message=said))
        lost = uncovered(client)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        yield problem(
            "reservations",
            f"{place(url)} cannot be reached: {error}",
            "Start it, or correct DRAWBRIDGE_RESERVATIONS_URL.",
        )
        return
    finally:
        client.close()
    yield _whole(url, lost)
    for same in found.values():
        yield max(same, key=lambda one: _GRAVITY.index(one.level))
    for name, other in others.items() if runs else ():
        yield _apart(name, other, runs)


def _node(client: Any, runs: set[str]) -> Iterator[Finding]:
    """Look at one server, and note which run of it this is; an edge's user may not ask."""
    asked = time.time()
    try:
        seconds, micros = client.time()
        yield offset("reservations clock", seconds + micros / 1e6, asked)
        info: Any = client.info()
    except redis.ResponseError as error:
        yield skipped("eviction", f"Run it as a user that may call TIME and INFO: {error}")
        return
    runs.add(str(info.get("run_id", "")))
    yield _policy(info)
    yield _version(info)


def _whole(url: str, lost: int) -> Finding:
    if lost:
        return problem(
            "reservations",
            f"{place(url)} answers, but no node holds {lost} of its slots: queues there stand "
            "still.",
            "Start the node that holds them, or give it a replica; `CLUSTER NODES` names it.",
        )
    return ok("reservations", f"{place(url)} answers.")


def _policy(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy != "noeviction":
        return problem(
            "eviction",
            f"maxmemory-policy is {policy}: a full server drops keys, and leases with them.",
            "Set `maxmemory-policy noeviction` in its configuration.",
        )
    return ok("eviction", "maxmemory-policy is noeviction.")


def _version(info: Mapping[str, Any]) -> Finding:
    text = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers < VERSION_MIN:
        return problem(
            "version", f"The server speaks as Redis {text}.", "Run Redis 7 or newer, or Valkey."
        )
    return ok("version", f"The server speaks as Redis {text}.")


def _apart(name: str, url: str, runs: Collection[str]) -> Finding:
    """Look that Celery's server is another one: a FLUSHALL or a full memory must not reach both."""
    if urlsplit(url).scheme == _SOCKET:
        url = "unix" + url.removeprefix(_SOCKET)
    scheme = urlsplit(url).scheme
    if "sentinel" in scheme:
        return skipped(
            name,
            f"{place(url)} is a Redis behind Sentinels: see by hand that `INFO server` of its "
            "master names another run_id than the reservations'.",
        )
    if scheme not in _REDIS:
        return ok(name, f"{place(url)} is no Redis, so it is another server.")
    client = _client(url)
    try:
        info: Any = client.info("server")
    except redis.RedisError as error:
        return problem(
            name, f"{place(url)} cannot be asked: {error}", "Start it, or correct its URL."
        )
    finally:
        client.close()
    if str(info.get("run_id")) in runs:
        return problem(
            name,
            f"{place(url)} is the server of the reservations: one FLUSHALL or one full memory "
            "takes both, whatever the database number.",
            "Give the reservations a server of their own (DRAWBRIDGE_RESERVATIONS_URL).",
        )
    return ok(name, f"{place(url)} is another server.")


def life(url: str, queues: Sequence[str]) -> Iterator[Finding]:
    """Look whether a bridge lives, and whether what it does in time is done in time."""
    reservations = Reservations.connect(url)
    try:
        now_ms = reservations.clock_ms()
        client: Any = reservations.client
        if client.get(owner("fleet")):
            yield ok("bridge", "A bridge speaks for the nodes.")
        else:
            yield problem("bridge", "No bridge speaks for the nodes.", _START_BRIDGE)
        yield _beat(client.get(BEAT), now_ms)
        yield _passes({name: reservations.mark(name) for name in queues}, now_ms)
        yield _lag([_overdue(reservations, name, now_ms) for name in queues])
    except (ReservationsUnavailable, redis.RedisError) as error:
        yield skipped("bridge", f"The reservations do not answer: {error}")
    finally:
        reservations.close()


def _beat(noted: str | None, now_ms: float) -> Finding:
    """Judge beat by its last nudge that a bridge has heard; without it nothing stands still."""
    if noted is None:
        return Finding(
            "beat",
            Level.NOTICE,
            "No bridge has heard from beat within a minute; the bridge does all by itself.",
            "Start `drawbridge beat`, or do without.",
        )
    since_s = max(0.0, (now_ms - int(noted)) / 1000)
    return ok("beat", f"A bridge heard from beat {age(since_s)} ago.")


def _passes(marks: Mapping[str, int | None], now_ms: float) -> Finding:
    """Judge the last maintenance pass: each leaves its moment in every queue's mark."""
    if not marks:
        return ok("maintenance", "There is no queue yet.")
    lost = [name for name, mark in marks.items() if mark is None]
    if lost:
        return problem(
            "maintenance",
            f"The index of {', '.join(lost)} is lost, and nobody has built it anew.",
            _START_BRIDGE,
        )
    oldest, name = min((mark or 0, name) for name, mark in marks.items())
    since_s = max(0.0, (now_ms - oldest) / 1000)
    message = f"The last pass was {age(since_s)} ago (queue {name})."
    if since_s > PASS_MAX_S:
        return problem("maintenance", message, _START_BRIDGE)
    return ok("maintenance", message)


def _overdue(reservations: Reservations, queue: str, now_ms: float) -> float:
    """Return for how many seconds the most overdue lease or grant of a queue waits for its end."""
    generation = reservations.generation(queue)
    if generation is None:
        return 0.0
    prefix = QueueKeys(queue, generation).prefix
    client: Any = reservations.client
    first: list[float] = [
        score
        for index in ("granting", "reserved")
        for _, score in client.zrange(prefix + index, 0, 0, withscores=True)
    ]
    return max([0.0, *((now_ms - score) / 1000 for score in first)])


def _lag(overdue_s: Sequence[float]) -> Finding:
    lag_s = max([0.0, *overdue_s])
    if lag_s > LAG_MAX_S:
        return problem(
            "expiry", f"A lease that ran out has waited {age(lag_s)} for its end.", _START_BRIDGE
        )
    return ok("expiry", "Leases that run out are ended in time.")


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
