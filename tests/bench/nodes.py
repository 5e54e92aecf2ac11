"""What a fleet of remote workers costs the Celery side: the bridge, the broker, Flower, `inspect`.

Workers are made up: each is marked as seen every five seconds, as an edge does while its claim
waits. Everything else is real: one bridge, Valkey, a monitor that counts events, Flower.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import requests
from celery import Celery

from broker.clock import to_ms
from broker.reservations.keys import LOADS, ONLINE
from tests.bench.measures import cpu_s
from tests.e2e.bridges import ROOT, World, world_of
from tests.processes import Process, until
from tests.services import Valkey, free_port

#: as an edge marks a worker whose claim waits
SEEN_EVERY_S: Final = 5.0
#: two heartbeats of each node
WINDOW_S: Final = 20.0
READY_S: Final = 120.0


class Fleet:
    """Workers that are seen, and do nothing."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self.names = [f"worker-{number:05d}" for number in range(count)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for name in self.names:
            world.queue.hello(name, {"concurrency": 2, "types": ["t"], "version": "0.1"})

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Have them seen for a while."""
        self._mark()
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SEEN_EVERY_S):
            self._mark()

    def _mark(self) -> None:
        client: Any = self._world.reservations.client
        now_ms = to_ms(self._world.queue.clock.now())
        client.zadd(ONLINE, dict.fromkeys(self.names, now_ms))
        client.hset(LOADS, mapping=dict.fromkeys(self.names, "0.10,0.20,0.30"))


class Counted:
    """What a monitor hears."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.events: Counter[str] = Counter()
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._hear})
            with receiver.consumer_context() as (conn, _, _):
                while not self._stop.is_set():
                    try:
                        conn.drain_events(timeout=0.5)
                    except TimeoutError:
                        continue

    def _hear(self, event: dict[str, Any]) -> None:
        self.events[str(event["type"])] += 1
        self.bytes += len(json.dumps(event))


def measure(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure fleets of these sizes, each on stores of its own; a row a figure.

    The ledger is SQLite's: the fleet reads it once a heartbeat.
    """
    found = {size: _fleet_of(size) for size in sizes}
    names = next(iter(found.values()))
    return [
        {"figure": name} | {f"{size} nodes": figures[name] for size, figures in found.items()}
        for name in names
    ]


def _fleet_of(size: int) -> dict[str, float]:
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="drawbridge-nodes-")))
        world = held.enter_context(world_of(_valkeys(held), folder, _processes(held, folder)))
        fleet = Fleet(world, size)
        flower, address = _flower(world, held, folder)
        bridge = world.bridge()
        counted = Counted(world.app)
        held.callback(counted.stop)
        with fleet.seen():
            until(lambda: _online(address) >= size, READY_S, "Flower shows them all")
            return _watched(world, bridge, flower, address, counted)


def _watched(
    world: World, bridge: Process, flower: Process, address: str, counted: Counted
) -> dict[str, float]:
    pids = {"broker": world.broker.pid, "bridge": bridge.pid, "Flower": flower.pid}
    counted.events.clear()
    counted.bytes = 0
    before, began = cpu_s(pids), time.monotonic()
    threading.Event().wait(WINDOW_S)
    spent, took = cpu_s(pids), time.monotonic() - began
    beats = counted.events["worker-heartbeat"]
    found = {
        "events/s": sum(counted.events.values()) / took,
        "bytes an event": counted.bytes / max(1, sum(counted.events.values())),
        "heartbeats/s": beats / took,
    }
    found |= {f"{role} CPU %": (spent[role] - before[role]) / took * 100 for role in pids}
    began = time.monotonic()
    rows = requests.get(f"{address}/workers?json=1", timeout=READY_S)
    found["Flower page s"] = time.monotonic() - began
    found["Flower page KiB"] = len(rows.content) / 1024
    found["offline in Flower"] = sum(not row["status"] for row in rows.json()["data"])
    found["Flower MiB"] = psutil.Process(flower.pid).memory_info().rss / 2**20
    found["bridge MiB"] = psutil.Process(bridge.pid).memory_info().rss / 2**20
    return found | _pinged(world)


def _pinged(world: World) -> dict[str, float]:
    """Ask all of them, as `celery inspect ping` does, for as long as it takes to hear all."""
    wanted = len(world.reservations.last_seen(limit=100_000)) + 1
    began = time.monotonic()
    answers = world.app.control.inspect(timeout=10, limit=wanted).ping() or {}
    took = time.monotonic() - began
    short = world.app.control.inspect(timeout=1).ping() or {}
    return {
        "ping s": took,
        "ping KiB": len(json.dumps(answers)) / 1024,
        "pinged": len(answers),
        "pinged within 1 s of silence": len(short),
    }


def _online(address: str) -> int:
    try:
        rows = requests.get(f"{address}/workers?json=1", timeout=READY_S).json()["data"]
    except requests.RequestException:
        return 0
    return sum(bool(row["status"]) for row in rows)


def _flower(world: World, held: ExitStack, folder: Path) -> tuple[Process, str]:
    port = free_port()
    argv = [sys.executable, "-m", "celery", "-b", world.broker_url, "flower"]
    argv += ["--address=127.0.0.1", f"--port={port}"]
    return _processes(held, folder)(argv, env={}, cwd=ROOT), f"http://127.0.0.1:{port}"


def _valkeys(held: ExitStack) -> Callable[..., Valkey]:
    def start(*options: str) -> Valkey:
        made = Valkey(*options).start()
        held.callback(made.remove)
        return made

    return start


def _processes(held: ExitStack, folder: Path) -> Callable[..., Process]:
    def start(argv: Sequence[str], **more: Any) -> Process:
        return held.enter_context(Process(argv, log=folder / f"{time.monotonic_ns()}.log", **more))

    return start
