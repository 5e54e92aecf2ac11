"""What the tests of the scripts share: how a job lies where, and who calls what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import redis

from broker.policy import Lane
from broker.reservations.shapes import Placement, Renewed
from broker.reservations.store import Reservations
from broker.states import Index

Q: Final = "remote"
ECHO: Final = Lane(Q, "echo", None, ())
CODEX: Final = Lane(Q, "codex_exec", "github.com/org/repo", ("gpu",))
START: Final = 1_800_000_000_000


class Moment:
    """The server's clock, set by the test; milliseconds."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


def is_fake(client: redis.Redis) -> bool:
    return "fake" in type(client).__module__.lower()


def opened(client: redis.Redis, moment: Moment | None) -> Reservations:
    """Open the reservations as another process would."""
    return Reservations(client, shebang=not is_fake(client), now_ms=moment)


def build(store: Reservations, generation: int = 1) -> None:
    """Publish an empty generation."""
    assert store.start_building(Q, f"token{generation}")
    store.publish(Q, generation, f"token{generation}", {})


def ready(number: int, *, version: int = 1, lane: Lane = ECHO, priority: int = 0) -> Placement:
    """Say that a job may be claimed."""
    return Placement(
        id=f"job{number}", index=Index.READY, at_ms=0, version=version, lane=lane,
        member=f"{number:016d}:job{number}", priority=priority,
    )  # fmt: skip


def scheduled(number: int, at_ms: int, *, version: int = 1, lane: Lane = ECHO) -> Placement:
    """Say that a job may be claimed later."""
    return replace(ready(number, version=version, lane=lane), index=Index.SCHEDULED, at_ms=at_ms)


def reserved(
    number: int, at_ms: int, *, lease: str = "L", worker: str = "w", version: int = 2, **more: Any
) -> Placement:
    """Say that a worker holds a job."""
    held: dict[str, Any] = {
        "index": Index.RESERVED, "at_ms": at_ms, "lease_id": lease, "worker_id": worker,
        "lease_ms": 60_000, "json": f'{{"job": {number}}}',
    }  # fmt: skip
    return replace(ready(number, version=version), **held | more)


def everything(store: Reservations) -> dict[str, Any]:
    """Read all keys of the server."""
    client = store.client
    readers: dict[str, Callable[[str], Any]] = {
        "string": client.get, "hash": client.hgetall, "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }  # fmt: skip
    return {key: readers[client.type(key)](key) for key in keys_of(client, "*")}


def keys_of(client: redis.Redis, pattern: str) -> list[str]:
    """List the keys that match, of all nodes where there are several."""
    return sorted(set(client.scan_iter(match=pattern, count=1000)))


def where(store: Reservations, number: int) -> dict[Index, float]:
    """Name the indexes a job lies in, with its score; by the hash nobody is led."""
    prefix = f"{{db:{Q}}}:g{store.generation(Q)}:"
    found = {
        index: store.client.zscore(prefix + index, f"job{number}")
        for index in (Index.SCHEDULED, Index.GRANTING, Index.RESERVED)
    }
    for key in keys_of(store.client, f"{prefix}lane:*"):
        score = store.client.zscore(key, f"{number:016d}:job{number}")
        if score is not None:
            found[Index.READY] = score
    return {index: score for index, score in found.items() if score is not None}


def hash_of(store: Reservations, number: int) -> dict[str, str]:
    return store.client.hgetall(f"{{db:{Q}}}:g{store.generation(Q)}:job:job{number}")


def take(store: Reservations, lease: str = "L", worker: str = "w", **more: Any) -> tuple[str, ...]:
    """Reserve whatever there is."""
    return store.reserve(Q, lambda _: True, lease_id=lease, worker_id=worker, **more).ids


def confirm(store: Reservations, *numbers: int, lease: str = "L", **more: Any) -> int:
    values: dict[str, Any] = {"index": Index.RESERVED, "hold_ms": 60_000, "lease_ms": 60_000}
    jobs = [(f"job{n}", 2, f'{{"job": {n}}}') for n in numbers]
    return store.confirm(Q, jobs, lease_id=lease, **values | more)


def renew(store: Reservations, number: int, **more: Any) -> Renewed | None:
    values: dict[str, Any] = {"lease_id": "L", "worker_id": "w", "lease_ms": 60_000}
    return store.renew(Q, f"job{number}", **values | more)


STATES: Final = [
    ready(1),
    ready(1, lane=CODEX, priority=3),
    scheduled(1, START + 5),
    reserved(1, START + 9, lease="L1"),
    reserved(1, START + 9, lease="L2", worker="v"),
    reserved(1, START + 9, index=Index.GRANTING),
]
