"""Every step of every call, ended in every way: the points are found by running the call.

Nobody lists them, so a step that is added later is tested at once. Each case is one call that is
cut at one side of one step, by the death of its process or by an error; then it is called again,
sweeps run, and the ledger must be as if it had been called once and nothing had happened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from broker import errors
from broker.upkeep import Upkeep
from tests.simulation.calls import CALLS, Call
from tests.simulation.scheduler import Killed, Schedule
from tests.simulation.stores import at
from tests.simulation.world import NONE, QUEUE, Mix, World

#: how often a caller asks again; each time, what a dead process held has lapsed
AGAIN: Final = 4
#: what callers and loops outlive: no answer, from a queue or from a store
AWAY: Final = (errors.Unavailable, redis.RedisError)


class Trap(Schedule):
    """A schedule of one actor that notes all points, and springs at one."""

    def __init__(self) -> None:
        super().__init__(0, NONE)
        self.points: list[str] = []
        #: which point, and whether it kills or fails
        self.set_at: tuple[int, str] | None = None
        self.armed = False
        self.sprung = False

    def step(self, name: str, when: str, error: type[Exception]) -> None:
        """Pass one side of a step."""
        if not self.armed:
            return
        at = len(self.points)
        self.points.append(f"{when} {name}")
        if self.set_at is not None and self.set_at[0] == at:
            self.sprung = True
            raise Killed if self.set_at[1] == "kill" else error


@dataclass(frozen=True, slots=True)
class Case:
    """One call cut at one point in one way."""

    call: str
    at: int
    point: str
    how: str

    def __str__(self) -> str:
        """Say it as one reads it in a report."""
        return f"{self.call}: {self.how} {self.point} (step {self.at})"


@dataclass(slots=True)
class Scene:
    """A world made ready for one call."""

    call: Call
    world: World
    trap: Trap = field(default_factory=Trap)
    ready: Any = field(init=False)

    def __post_init__(self) -> None:
        """Build it; nothing here is a step."""
        self.world.schedule = self.trap
        self.ready = self.call.prepare(self.world)

    def act(self, who: Any) -> Any:
        """Make the call, as the process given or a new one."""
        return self.call.act(who, self.ready)

    def cut(self, set_at: tuple[int, str] | None) -> Any:
        """Make the call with the trap set; returns who may call again."""
        who = self.call.who(self.world)
        self.trap.set_at, self.trap.armed = set_at, True
        try:
            self.act(who)
        except Killed:
            who = self.call.who(self.world)
        except AWAY:
            pass
        finally:
            self.trap.armed = False
        return who

    def repeat(self, who: Any) -> Any:
        """Call again until there is an answer."""
        answer = None
        for _ in range(AGAIN):
            answer = None
            with suppress(*AWAY):
                answer = self.act(who)
            if answer:
                break
            self.settle()
        return answer

    def sweep(self) -> None:
        """Do what beat and the bridges do all the time."""
        upkeep = Upkeep(self.world.process())
        for sweep in (upkeep.expire, upkeep.promote, upkeep.reconcile):
            self.world.bear(sweep)

    def settle(self) -> None:
        """Let lapse what a dead process held, and sweep."""
        self.world.clock.advance(self.call.lapse_s)
        self.sweep()

    def index_is_right(self) -> str:
        """Say what is wrong with the index; empty when nothing is."""
        client = self.world.admin
        tag = f"{{db:{QUEUE}}}:"
        prefix = f"{tag}g{client.get(tag + 'gen')}:"
        where: dict[str, set[str]] = {}
        for key in client.keys(prefix + "*"):
            name = key.removeprefix(prefix).partition(":")[0]
            if name in {"lane", "scheduled", "granting", "reserved"}:
                for member in client.zrange(key, 0, -1):
                    where.setdefault(member.rpartition(":")[2], set()).add(name)
        fits = {"queued": ({"lane"}, {"scheduled"}), "running": ({"granting"}, {"reserved"})}
        live = self.world.oracle.live()
        wrong = [
            f"{job} is {live.get(job)} and lies in {sorted(where.get(job, ()))}"
            for job in sorted({*live, *where})
            if where.get(job) not in fits.get(live.get(job, ""), ())
        ]
        return "; ".join(wrong)


def reference(call: Call) -> tuple[Any, list[str]]:
    """Make a call undisturbed; returns the ledger afterwards, and the points it passed."""
    with _scene(call) as scene:
        scene.cut(None)
        scene.settle()
        return scene.world.oracle.signature(), scene.trap.points


def cases(call: str, points: Sequence[str]) -> list[Case]:
    """List all cases of a call: each step killed after, failed before, failed after.

    To die before a step is to die after the one before it.
    """
    return [
        Case(call, at, point, how)
        for at, point in enumerate(points)
        for how in ("kill", "fail")
        if how == "fail" or point.startswith("after") or at == 0
    ]


def cut(some: Sequence[Case], part: int, *, of: int) -> list[Case]:
    """Take a part of the cases that still touches every step, in one way or another."""
    return [case for number, case in enumerate(some) if number % of == part % of]


def play(case: Case, expected: Any) -> list[str]:
    """Play a case; returns what went wrong."""
    with _scene(CALLS[case.call]) as scene:
        who = scene.cut((case.at, case.how))
        if not scene.trap.sprung:
            return [f"{case}: the point was not reached"]
        answer = scene.repeat(who)
        scene.settle()
        wrong = []
        if not answer:
            wrong.append("no answer to the repeat")
        if (found := scene.world.oracle.signature()) != expected:
            wrong.append(f"the ledger has {found}, expected was {expected}")
        if index := scene.index_is_right():
            wrong.append(index)
        scene.world.heal()
        scene.world.oracle.conclude()
        wrong += [f"{one.invariant} {one.evidence}" for one in scene.world.oracle.broken]
        return [f"{case}: {one}" for one in wrong]


@contextmanager
def _scene(call: Call) -> Iterator[Scene]:
    """Make a world ready, with a time of its own."""
    logging.disable(logging.CRITICAL)
    world = World(0, Mix("failpoints"))
    try:
        with at(world.clock):
            yield Scene(call, world)
    finally:
        logging.disable(logging.NOTSET)
        world.close()
