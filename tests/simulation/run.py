"""One run of a seed, and many: `python -m tests.simulation.run --seed 7 --mix kills`."""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.simulation import actors
from tests.simulation.oracle import Broken
from tests.simulation.scheduler import Faults
from tests.simulation.stores import at
from tests.simulation.world import Mix, World

LONG: Final = (0.2, 1.0, 4.0, 11.0, 31.0, 61.0)
#: between these writes of one call lies all that a crash can tear apart
WRITES: Final = ("ledger.write", "redis.admit", "redis.drop", "redis.confirm", "broker.settle")
MIXES: Final = {
    mix.name: mix
    for mix in (
        Mix("calm"),
        Mix("late", jumps_s=LONG),
        Mix("kills", Faults(kill=50), jumps_s=LONG),
        Mix("fails", Faults(fail=25), jumps_s=LONG),
        Mix("flushes", flushes=3, jumps_s=LONG),
        Mix("writes", Faults(kill=8, aim=WRITES), jumps_s=(0.1, 0.2, 0.5, 1.0, 31.0)),
        Mix("all", Faults(kill=100, fail=60), flushes=2, jumps_s=LONG),
    )
}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one run."""

    seed: int
    mix: str
    steps: int
    figures: Counter[str]
    struck: Counter[str]
    broken: tuple[Broken, ...]

    def __str__(self) -> str:
        """Say how to see it again."""
        said = "".join(f"\n  {one.invariant} {one.job}: {one.evidence}" for one in self.broken)
        return f"seed {self.seed}, mix {self.mix} ({self.steps} steps){said}"


def run(seed: int, mix: Mix) -> Result:
    """Run a seed to its end, let all heal, and judge."""
    world = World(seed, mix)
    schedule = world.schedule
    logging.disable(logging.CRITICAL)
    with at(world.clock):
        try:
            _play(world)
        finally:
            logging.disable(logging.NOTSET)
            world.close()
    figures, broken = world.oracle.figures, world.oracle.broken
    return Result(seed, mix.name, schedule.steps, figures, Counter(schedule.struck), tuple(broken))


def _play(world: World) -> None:
    schedule = world.schedule
    for _ in range(4):
        world.oracle.created.append(world.process().create(world.new()).id)
    for name in actors.POLICIES:
        schedule.spawn(name, actors.Worker(world, name).work)
    schedule.spawn("creator", actors.Operator(world).create)
    schedule.spawn("operator", actors.Operator(world).meddle)
    schedule.spawn("stranger", actors.Stranger(world).work)
    for name in ("sweeps", "bridge", "bridge", "time_passes", "fate"):
        schedule.spawn(name, partial(getattr(actors, name), world))
    schedule.run()
    world.oracle.figures["rounds_to_heal"] = world.heal()
    world.oracle.conclude()


def many(first: int, names: Sequence[str], *, seconds: float, most: int = 10**6) -> list[Result]:
    """Run seed after seed, the mixes in turn, until the time is up."""
    results: list[Result] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(results) < most:
        at = len(results)
        results.append(run(first + at, MIXES[names[at % len(names)]]))
    return results


def main() -> None:
    """Run one seed, or as many as fit into a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--mix", choices=sorted(MIXES), default=None)
    parser.add_argument("--seconds", type=float, default=None)
    asked = parser.parse_args()
    first = asked.seed if asked.seed is not None else time.time_ns() % 2**32
    names = [asked.mix] if asked.mix else list(MIXES)
    started = time.monotonic()
    results = many(first, names, seconds=asked.seconds or 1e-9) or [run(first, MIXES[names[0]])]
    took = time.monotonic() - started
    for result in results:
        if result.broken:
            print(result)
    figures: Counter[str] = sum((result.figures for result in results), Counter())
    steps = sum(result.steps for result in results)
    print(f"seeds {first}..{first + len(results) - 1}: {steps} steps in {took:.1f} s")
    print(dict(figures))
    print(dict(sum((result.struck for result in results), Counter())))


if __name__ == "__main__":
    main()
