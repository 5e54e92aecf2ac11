"""A whole stack to be broken: real servers, `drawbridge up`, a proxy on every wire."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, Final, Self

import psutil
import sqlalchemy as sa

from broker.stack.programs import answers, command
from tests.chaos.edge import Edge
from tests.chaos.promises import Flight, PromiseLog
from tests.chaos.proxy import Proxy
from tests.chaos.reading import Places, engine_at
from tests.processes import Process, until
from tests.services import Postgres, Valkey, free_port
from tests.stacks import Stack, start_up

#: What the orchestrator was promised must outlive a kill of its broker: that is not ours to keep.
DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
QUEUE: Final = "remote"
LINKS: Final = "local"
ROLES: Final = ("edge", "bridge", "beat")
#: A second of these runs beside the stack: nobody's claims, drains and sweeps are their own.
SECONDS: Final = ("edge2", "bridge2")
HEALED_S: Final = 90.0


class World:
    """One stack, its servers and proxies."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.flight = Flight()
        self._held = ExitStack()
        self.broker = self._server(Valkey(*DURABLE))
        self.backend = self._server(Valkey(*DURABLE))
        self.reservations = self._server(Valkey())
        self.postgres = self._server(Postgres()) if database == "postgres" else None
        self.wires = {
            name: self._wire(server.port)
            for name, server in {
                "broker": self.broker,
                "backend": self.backend,
                "reservations": self.reservations,
                **({"ledger": self.postgres} if self.postgres else {}),
            }.items()
        }
        self.stack: Stack
        self.places: Places
        #: Process ids that are stopped by SIGSTOP just now.
        self.frozen: set[int] = set()
        self._seconds: dict[str, Process] = {}
        self._edges = cycle(("edge", "edge2"))

    def _server(self, server: Any) -> Any:
        self._held.callback(server.remove)
        return server.start()

    def _wire(self, port: int) -> Proxy:
        proxy = Proxy(port).start()
        self._held.callback(proxy.stop)
        return proxy

    def start(self) -> Self:
        """Bring the stack up, each of its processes behind the proxies."""
        addresses = {name: f"redis://127.0.0.1:{wire.port}/0" for name, wire in self.wires.items()}
        options = [
            "--no-flower", "--queue", QUEUE, "--broker-url", addresses["broker"],
            "--result-backend", addresses["backend"],
            "--reservations-url", addresses["reservations"],
        ]  # fmt: skip
        if self.postgres is not None:
            port = f":{self.wires['ledger'].port}/"
            url = self.postgres.url().replace(f":{self.postgres.port}/", port)
            options += ["--database-url", url]
        data = self.folder / "data"
        self.stack = start_up(self._process, data, *options)
        told = self.stack.told
        self.wires["edge"] = self._wire(int(told["edgeUrl"].rpartition(":")[2]))
        self._second_port = free_port()
        self.wires["edge2"] = self._wire(self._second_port)
        for role in SECONDS:
            self._start_second(role)
        promises = self.folder / "promises"
        promises.mkdir()
        self.places = Places(
            database_url=self.postgres.url() if self.postgres else told["databaseUrl"],
            reservations_url=self.reservations.url,
            broker_url=self.broker.url,
            backend_url=self.backend.url,
            artifacts=data / "artifacts",
            promises=promises,
            queue=QUEUE,
            links=LINKS,
        )
        self.heal()
        return self

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
        self._seconds[role] = self._process([command("drawbridge"), *argv], name=role, env=env)

    def edge_url(self) -> str:
        """Name one of the edges, behind its proxy; the next call names the other."""
        return f"http://127.0.0.1:{self.wires[next(self._edges)].port}"

    def log(self, client: str) -> PromiseLog:
        """Open the promise log of a client."""
        log = PromiseLog(self.places.promises, client, self.flight)
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
            if number == signal.SIGKILL:
                self._seconds[role].wait()
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

    def servers(self) -> list[Any]:
        """List the servers, those that may be down too."""
        return [
            server
            for server in (self.broker, self.backend, self.reservations, self.postgres)
            if server is not None
        ]

    def pids_of(self, server: Any) -> list[int]:
        """List a server's processes, its children first."""
        children = psutil.Process(server.pid).children(recursive=True)
        return [child.pid for child in children] + [server.pid]

    def heal(self) -> None:
        """Undo every fault, and wait until all is up again."""
        self.thaw()
        for server in self.servers():
            server.start()
        for wire in self.wires.values():
            wire.stall(on=False)
            wire.refuse(on=False)
            wire.drop_replies(0)
        until(self._answers, HEALED_S, what=lambda: f"up again: {self.stack.process.tail()}")

    def _answers(self) -> bool:
        assert self.stack.process.returncode is None, self.stack.process.tail()
        for role, process in self._seconds.items():
            assert process.returncode is None, f"{role}: {process.tail()}"
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
        engine = engine_at(self.places.database_url)
        self._held.callback(engine.dispose)
        return engine

    def close(self) -> None:
        """End everything."""
        self.thaw()
        self._held.close()


@contextmanager
def world_on(database: str, folder: Path) -> Iterator[World]:
    """Start a world, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(database, folder)
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
