"""A whole stack to be broken: `drawbridge up` on real servers, and a second of each process."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Final, Self

import psutil
import sqlalchemy as sa

from broker.stack.programs import answers, command
from tests.chaos.edge import Edge
from tests.chaos.promises import Flight, PromiseLog
from tests.chaos.reading import Places, engine_at, prepare
from tests.chaos.servers import Servers, Shape
from tests.chaos.skews import Skew
from tests.processes import Process, until
from tests.services import free_port
from tests.stacks import Stack, start_up

QUEUE: Final = "remote"
LINKS: Final = "local"
ROLES: Final = ("edge", "bridge", "beat")
#: A second of these runs beside the stack: nobody's claims, drains and sweeps are their own.
SECONDS: Final = ("edge2", "bridge2", "beat2")
#: How wrong the clocks of the seconds are in the shape `skewed`; all others are right.
OFFSETS_S: Final = {"edge2": 30.0, "bridge2": -30.0, "beat2": 45.0}
HEALED_S: Final = 90.0


class World:
    """One stack, its servers and proxies."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.folder = folder
        self.flight = Flight()
        self._held = ExitStack()
        self.servers = Servers(shape)
        self._held.callback(self.servers.close)
        self.wires = self.servers.wires
        self.stack: Stack
        self._places: Places
        #: Process ids that are stopped by SIGSTOP just now.
        self.frozen: set[int] = set()
        #: What faults have done, where that is more than to strike.
        self.counts: Counter[str] = Counter()
        self.skews: dict[str, Skew] = {}
        self._seconds: dict[str, Process] = {}
        #: how long the log of each was when it was started
        self._began: dict[str, int] = {}
        self._mending: threading.Thread | None = None
        self._edges = cycle(("edge", "edge2"))

    def start(self) -> Self:
        """Bring the stack up, each of its processes behind the proxies."""
        options = ["--no-flower", "--queue", QUEUE]
        for name, address in self.servers.addresses().items():
            options += [f"--{name}", address]
        data = self.folder / "data"
        self.stack = start_up(self._process, data, *options)
        told = self.stack.told
        self.wires["edge"] = self.servers.wire(int(told["edgeUrl"].rpartition(":")[2]))
        self._second_port = free_port()
        self.wires["edge2"] = self.servers.wire(self._second_port)
        if self.shape.skewed:
            self.skews = {
                role: Skew(self.folder / f"{role}.clock", offset_s)
                for role, offset_s in OFFSETS_S.items()
            }
        for role in SECONDS:
            self._start_second(role)
        promises = self.folder / "promises"
        promises.mkdir()
        postgres = self.servers.postgres
        self._places = Places(
            database_url=postgres.url() if postgres else told["databaseUrl"],
            reservations_url=self.servers.reservations.url,
            broker_url=self.servers.broker.url,
            backend_url=self.servers.backend.url,
            artifacts=data / "artifacts",
            promises=promises,
            queue=QUEUE,
            links=LINKS,
        )
        prepare(self._places)
        self.heal()
        return self

    @property
    def places(self) -> Places:
        """Where everything lies just now: the reservations may have moved."""
        return replace(self._places, reservations_url=self.servers.reservations.url)

    def _process(self, argv: Any, *, name: str = "up", **more: Any) -> Process:
        started = Process(argv, log=self.folder / f"{name}.log", **more)
        self._held.callback(started.close)
        return started

    def _start_second(self, role: str) -> None:
        """Start the second of a role; it has what the first has."""
        told = self.stack.told
        env = {
            "DRAWBRIDGE_DATABASE_URL": told["databaseUrl"],
            "DRAWBRIDGE_RESERVATIONS_URL": told["reservationsUrl"],
            "DRAWBRIDGE_ARTIFACTS_DIR": str(Path(told["dataDir"]) / "artifacts"),
            "DRAWBRIDGE_QUEUES": QUEUE,
        }
        argv = ["edge", "--host", "127.0.0.1", "--port", str(self._second_port)]
        if role == "bridge2":
            env |= {
                "DRAWBRIDGE_BROKER_URL": told["brokerUrl"],
                "DRAWBRIDGE_RESULT_BACKEND": told["resultBackend"],
            }
            argv = ["bridge", "-n", "second@here"]
        elif role == "beat2":
            env = {"DRAWBRIDGE_BROKER_URL": told["brokerUrl"]}
            argv = ["beat"]
        if role in self.skews:
            env |= self.skews[role].environ()
        home = self.folder / role
        home.mkdir(exist_ok=True)
        argv = [command("drawbridge"), *argv]
        log = self.folder / f"{role}.log"
        self._began[role] = log.stat().st_size if log.exists() else 0
        self._seconds[role] = self._process(argv, name=role, env=env, cwd=home)

    def edge_url(self) -> str:
        """Name one of the edges, behind its proxy; the next call names the other."""
        return f"http://127.0.0.1:{self.wires[next(self._edges)].port}"

    def log(self, client: str) -> PromiseLog:
        """Open the promise log of a client."""
        log = PromiseLog(self._places.promises, client, self.flight)
        self._held.callback(log.close)
        return log

    def operator(self, log: PromiseLog) -> Edge:
        """Speak as the operator."""
        return Edge(self.edge_url(), self.stack.told["operatorToken"], log)

    def worker(self, worker_id: str, **policy: Any) -> tuple[Edge, str]:
        """Let a worker in; return its way to the edge, and its token's id."""
        made = self.stack.operator.post("/workers/tokens", {"workerId": worker_id} | policy)
        assert made.status_code == 201, made.text
        body = made.json()
        edge = Edge(self.edge_url(), body["token"], self.log(worker_id))
        return edge, body["workerToken"]["id"]

    # -- breaking and mending ----------------------------------------------------------------

    def signal(self, role: str, number: signal.Signals) -> int | None:
        """Send a signal to a role of the stack; None when it is down just now."""
        if role in SECONDS:
            self._seconds[role].send(number)
            if number in {signal.SIGKILL, signal.SIGTERM}:
                self._seconds[role].wait(HEALED_S)
                self._start_second(role)
            return self._seconds[role].pid
        try:
            pid = self.stack.pid(role)
            os.kill(pid, number)
        except (KeyError, ProcessLookupError):
            return None
        return pid

    def pid(self, role: str) -> int:
        """Name the process of a role."""
        return self._seconds[role].pid if role in SECONDS else self.stack.pid(role)

    def freeze(self, pids: list[int]) -> None:
        """Stop processes by SIGSTOP."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.frozen.add(pid)

    def thaw(self) -> None:
        """Let what was frozen go on."""
        while self.frozen:
            with suppress(ProcessLookupError):
                os.kill(self.frozen.pop(), signal.SIGCONT)

    def revive(self) -> None:
        """Start again who ended by itself, as a supervisor does: at its start it may give up."""
        for role, process in list(self._seconds.items()):
            if process.returncode is not None:
                self.counts[f"{role} gave up"] += 1
                print(f"{role} gave up: {process.tail(12)}")
                self._start_second(role)

    def is_up(self, role: str, timeout_s: float) -> bool:
        """Wait a while until a second edge serves, or any other second has begun to work."""
        log, before = self.folder / f"{role}.log", self._began[role]
        if role == "edge2":
            url = f"http://127.0.0.1:{self._second_port}/healthz"
            return spin(lambda: answers(url), timeout_s)
        return spin(lambda: b"ready." in log.read_bytes()[before:], timeout_s)

    def mend(self, work: Callable[[], object]) -> None:
        """Do what takes long beside what else goes on."""
        self._mending = threading.Thread(target=work, daemon=True)
        self._mending.start()

    def mended(self) -> None:
        """Wait until that is done."""
        if self._mending is not None:
            self._mending.join(HEALED_S)
            assert not self._mending.is_alive()

    def heal(self) -> None:
        """Undo every fault, and wait until all is up again."""
        self.thaw()
        self.mended()
        self.servers.heal()
        until(self.servers.whole, HEALED_S, what="one primary, and a replica that follows it")
        until(self._answers, HEALED_S, what=lambda: f"up again: {self.stack.process.tail()}")

    def _answers(self) -> bool:
        assert self.stack.process.returncode is None, self.stack.process.tail()
        self.revive()
        edges = (self.stack.told["edgeUrl"], f"http://127.0.0.1:{self._second_port}")
        ready = all(answers(f"{edge}/readyz") for edge in edges)
        return ready and all(self._lives(role) for role in ROLES)

    def _lives(self, role: str) -> bool:
        try:
            return bool(psutil.Process(self.stack.pid(role)).status() != psutil.STATUS_ZOMBIE)
        except (KeyError, psutil.NoSuchProcess):
            return False

    def engine(self) -> sa.Engine:
        """Open the ledger for reading."""
        engine = engine_at(self._places.database_url)
        self._held.callback(engine.dispose)
        return engine

    def close(self) -> None:
        """End everything."""
        self.thaw()
        self.mended()
        self._held.close()


@contextmanager
def world_on(shape: Shape, folder: Path) -> Iterator[World]:
    """Start a world, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(shape, folder)
    try:
        yield world.start()
    finally:
        world.close()


def wait_in_flight(world: World, timeout_s: float = 2.0) -> bool:
    """Wait a moment for a call to be under way; False when none came."""
    return spin(lambda: world.flight.open > 0, timeout_s)


def spin(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look very often whether something is so."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.001)
    return False
