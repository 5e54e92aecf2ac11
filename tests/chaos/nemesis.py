"""Who lets things go wrong: chosen by a seed, logged with whether a call was in flight."""

import random
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Final

import psutil
import redis

from tests.chaos.facts import Fault
from tests.chaos.faults import faults_of, turns_of
from tests.chaos.world import World, wait_in_flight

#: How a fault finds that another has struck there before it.
MISSES: Final = (
    KeyError,
    ProcessLookupError,
    psutil.NoSuchProcess,
    redis.RedisError,
    sqlite3.OperationalError,
)


class Nemesis:
    """Strikes at a pace, as the seed says."""

    def __init__(
        self, world: World, *, seed: int, pace_s: float, also: Collection[str] = ()
    ) -> None:
        self._world = world
        self._dice = random.Random(f"{seed}:nemesis:{world.shape.database}")
        self._pace_s = pace_s
        known = faults_of(world.shape, also)
        self._strikes = {name: strike for name, (_, strike) in known.items()}
        self._weights = [weight for weight, _ in known.values()]
        turns = sorted(turns_of(world.shape))
        self._dice.shuffle(turns)
        #: Every second fault of a shape is one of its own.
        self._turns = iter(cycle([name for turn in turns for name in (turn, None)] or [None]))
        self.faults: list[Fault] = []

    def strike(self) -> Fault:
        """Let one thing go wrong, now."""
        name = next(self._turns)
        if name is None:
            name = self._dice.choices(list(self._strikes), weights=self._weights)[0]
        self._world.revive()
        in_flight = wait_in_flight(self._world)
        began = time.time()
        with _survivable():
            self._strikes[name](self._world, self._dice)
        fault = Fault(kind=name, began_at=began, ended_at=time.time(), in_flight=in_flight)
        self.faults.append(fault)
        return fault

    def rest_s(self) -> float:
        """Say how long to wait for the next."""
        return self._dice.uniform(0.5, 1.5) * self._pace_s


@contextmanager
def _survivable() -> Iterator[None]:
    """Let a fault miss whom another fault has struck already."""
    try:
        yield
    except MISSES:
        return
