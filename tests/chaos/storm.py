"""One run: a stack under load and faults, healed, drained, measured in peace, and read."""

import os
import random
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from tests.chaos import calm
from tests.chaos.facts import Facts, Fault, Sample
from tests.chaos.nemesis import Nemesis
from tests.chaos.producers import Producer, Reader
from tests.chaos.reading import facts_of, left_in_broker, pairs, sample
from tests.chaos.servers import Shape
from tests.chaos.workers import Mood, Worker
from tests.chaos.world import QUEUE, World, world_on

LOOPS: Final = 6
LEASE_S: Final = 5
JOB_EVERY_S: Final = 0.12
FAULT_EVERY_S: Final = 1.5
SAMPLE_EVERY_S: Final = 1.0
DRAIN_S: Final = 240.0
#: What processes take to find their stores again; what is asked meanwhile may be refused.
SETTLE_S: Final = 3.0
QUIET_S: Final = 6.0
JOIN_S: Final = 60.0
#: Types of the workers' policies; `gpu` is for one of them alone.
TYPES: Final = ("echo",)


@dataclass(frozen=True, slots=True)
class Storm:
    """What a run found, and how it went."""

    facts: Facts
    recovery_s: float
    drain_s: float
    #: what faults have done, where that is more than to strike
    counts: Mapping[str, int]


class Sampler:
    """Takes snapshots of the ledger while the run goes on."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Sample] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take them in the meantime."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            try:
                self.samples.append(sample(self._engine, time.time()))
            except sa.exc.SQLAlchemyError:
                continue  # the ledger is away, which is what the run is about


class Fleet:
    """Everybody who talks to the stack."""

    def __init__(self, world: World, *, seed: int) -> None:
        self.mood = Mood()
        self.types: dict[str, frozenset[str]] = {}
        self.caps: dict[str, int] = {}
        self.revoked: dict[str, float] = {}
        self.tokens: dict[str, str] = {}
        self._world = world
        self._seed = seed
        self.workers = [self._worker(f"loop-{n}", LEASE_S + n % 2) for n in range(LOOPS)]
        self.workers.append(self._worker("capped", LEASE_S, max_jobs=4, cap=2))
        self.workers.append(self._worker("gpu", LEASE_S, types=("gpu",)))
        self.workers.append(self._worker("leaver", LEASE_S))
        operator = world.log("operator")
        self.operator = world.operator(operator)
        log = world.log("producer")
        self.producer = Producer(
            world.places, world.operator(log), log, seed=seed, mood=self.mood, pace_s=JOB_EVERY_S
        )
        reader = world.operator(world.log("reader"))
        self.reader = Reader(reader, self.producer, mood=self.mood, seed=seed)

    def _worker(
        self,
        name: str,
        lease_s: int,
        *,
        types: tuple[str, ...] = TYPES,
        max_jobs: int = 1,
        cap: int | None = None,
    ) -> Worker:
        policy: dict[str, Any] = {"allowedJobTypes": list(types)}
        if cap is not None:
            policy["maxConcurrency"] = self.caps[name] = cap
        self.types[name] = frozenset(types)
        edge, self.tokens[name] = self._world.worker(name, **policy)
        return Worker(
            edge, name, seed=self._seed, mood=self.mood, lease_s=lease_s, max_jobs=max_jobs
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have everybody send, work and read in the meantime, and end before the stack does."""
        everybody = (*self.workers, self.reader)
        try:
            for one in (*everybody, self.producer):
                one.start()
            yield
        finally:
            self.mood.stopping.set()
            self.producer.stop(JOIN_S)
            for one in everybody:
                one.join(JOIN_S)
            self.operator.close()

    def revoke(self, name: str) -> None:
        """Revoke a worker's credential, and note when that was promised."""
        path = f"/workers/tokens/{self.tokens[name]}/revoke"
        answer = self.operator.call("revoke", path, {}, what={"worker": name})
        if answer is not None and answer.ok:
            self.revoked[name] = time.time()


def run(
    shape: Shape, *, seed: int, seconds: float, folder: Path, also: Collection[str] = ()
) -> Storm:
    """Run once; the seed decides what is asked and what goes wrong, not how threads meet."""
    with world_on(shape, folder) as world, _nobody_crashes():
        sampler = Sampler(world.engine())
        fleet = Fleet(world, seed=seed)
        nemesis = Nemesis(world, seed=seed, pace_s=FAULT_EVERY_S, also=also)
        with sampler.running(), fleet.running():
            _rage(fleet, nemesis, random.Random(f"{seed}:storm"), seconds)
            fleet.mood.wild = False
            healed = time.monotonic()
            world.heal()
            recovery_s = time.monotonic() - healed
            quiet = _quiet(fleet)
            begun = time.time()
            rebuilt = calm.rebuild(world)
            flushed = Fault(
                kind="reservations flushed", began_at=begun, ended_at=time.time(),
                in_flight=world.flight.open > 0,
            )  # fmt: skip
            nemesis.faults.append(flushed)
            fleet.producer.stop(JOIN_S)
            drain_s = _drain(world)
            wakes = calm.Calm(world).measure()
            _drain(world)
        facts = facts_of(
            world.places, samples=sampler.samples, faults=nemesis.faults, caps=fleet.caps,
            types=fleet.types, revoked=fleet.revoked, quiet=quiet, read_at=time.time(),
            slack_s=slack_s(), wakes=wakes, rebuilds=[rebuilt],
        )  # fmt: skip
        return Storm(facts=facts, recovery_s=recovery_s, drain_s=drain_s, counts=dict(world.counts))


@contextmanager
def _nobody_crashes() -> Iterator[None]:
    """Fail when a thread of ours has died: what it did not do proves nothing."""
    crashes: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, crashes.append
    try:
        yield
    finally:
        threading.excepthook = before
    if crashes:
        raise RuntimeError("a client of the suite crashed") from crashes[0].exc_value


def _rage(fleet: Fleet, nemesis: Nemesis, dice: random.Random, seconds: float) -> None:
    """Let things go wrong; a little calm at the begin, so that there is something to strike."""
    begun = time.monotonic()
    leaves = dice.uniform(0.3, 0.6) * seconds
    time.sleep(min(3.0, seconds / 5))
    while (now := time.monotonic() - begun) < seconds:
        fleet.mood.silent = now < seconds / 2
        if now > leaves and not fleet.revoked:
            fleet.revoke("leaver")
        nemesis.strike()
        time.sleep(nemesis.rest_s())


def _quiet(fleet: Fleet) -> tuple[float, float]:
    """Let the load go on in peace for a while, after what was left to do has settled a little."""
    while not fleet.revoked:
        fleet.revoke("leaver")
    time.sleep(SETTLE_S)
    begin = time.time()
    time.sleep(QUIET_S)
    return begin, time.time()


def _drain(world: World) -> float:
    """Wait until nothing is left to do, and say how long that took; what is stuck is judged."""
    begun = time.monotonic()
    engine = world.engine()
    while _left(world, engine) and time.monotonic() - begun < DRAIN_S:
        time.sleep(0.2)
    # those that a bridge holds are counted by RabbitMQ's own command alone
    while world.servers.held(QUEUE) and time.monotonic() - begun < DRAIN_S:
        time.sleep(0.2)
    return time.monotonic() - begun


def _left(world: World, engine: sa.Engine) -> dict[str, int]:
    """Count what has not ended: messages, jobs, effects."""
    jobs = "SELECT status, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY 1"
    told = "done_at IS NOT NULL OR parked_at IS NOT NULL"
    effects = f"SELECT 'effects', count(*) FROM outbox WHERE NOT ({told})"  # noqa: S608  our words
    with engine.connect() as conn:
        counted = pairs(conn, jobs) | pairs(conn, effects)
    counted["messages"] = left_in_broker(world.places)
    return {name: count for name, count in counted.items() if count}


def slack_s() -> float:
    """Say what this machine, as busy as it is, adds to each bound on time."""
    return 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
