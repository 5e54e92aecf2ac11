"""What goes wrong: every fault by its name, chosen by a seed, logged with whether it struck.

Each fault waits for a call to be in flight, strikes, lasts, and is undone; `World.heal` undoes
what is left.
"""

import random
import signal
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import Any, Final

import psutil
import redis

from tests.chaos.facts import Fault
from tests.chaos.reading import redis_at
from tests.chaos.world import World, wait_in_flight

#: How a fault finds that another has struck there before it.
MISSES: Final = (
    KeyError,
    ProcessLookupError,
    psutil.NoSuchProcess,
    redis.RedisError,
    sqlite3.OperationalError,
)

Strike = Callable[[World, random.Random], None]


def kill(role: str) -> Strike:
    """SIGKILL a role; the stack starts it again."""

    def strike(world: World, _dice: random.Random) -> None:
        world.signal(role, signal.SIGKILL)

    return strike


def freeze(role: str, *, least_s: float, most_s: float) -> Strike:
    """SIGSTOP a role for a while."""

    def strike(world: World, dice: random.Random) -> None:
        world.freeze([world.pid(role)])
        time.sleep(dice.uniform(least_s, most_s))
        world.thaw()

    return strike


def freeze_server(name: str, *, least_s: float, most_s: float) -> Strike:
    """SIGSTOP a server with its children for a while."""

    def strike(world: World, dice: random.Random) -> None:
        world.freeze(world.pids_of(getattr(world, name)))
        time.sleep(dice.uniform(least_s, most_s))
        world.thaw()

    return strike


def restart(name: str, *, least_s: float, most_s: float) -> Strike:
    """Kill a server as the kernel would, and start it again after a while."""

    def strike(world: World, dice: random.Random) -> None:
        server = getattr(world, name)
        if name == "postgres":
            # "-m immediate": it ends its children and recovers at the next start
            server.process.send(signal.SIGQUIT)
            server.stop()
        else:
            server.kill()
        time.sleep(dice.uniform(least_s, most_s))
        server.start()

    return strike


def redis_command(name: str, *words: str) -> Strike:
    """Send an administrator's command to a Redis."""

    def strike(world: World, _dice: random.Random) -> None:
        with redis_at(getattr(world.places, f"{name}_url")) as client:
            client.execute_command(*words)

    return strike


def delete_some(world: World, dice: random.Random) -> None:
    """Delete keys of one kind from the reservations."""
    part = dice.choice(("job:", "lane:", "heads", "reserved", "granting", "lanes", "gen"))
    with redis_at(world.places.reservations_url) as client:
        keys: Any = client.keys(f"*{part}*")
        if keys:
            client.delete(*keys)


def fill_reservations(world: World, dice: random.Random) -> None:
    """Let the reservations have no memory for a while: what reads is answered, no key is made."""
    with redis_at(world.places.reservations_url) as client:
        policy: Any = client.config_get("maxmemory-policy")
        if policy["maxmemory-policy"] != "noeviction":
            raise AssertionError("a full server would drop keys")
        client.config_set("maxmemory", 1)
        try:
            time.sleep(dice.uniform(0.5, 6.0))
        finally:
            client.config_set("maxmemory", 0)


def reset(wire: str) -> Strike:
    """Reset every connection of a wire."""

    def strike(world: World, _dice: random.Random) -> None:
        world.wires[wire].reset()

    return strike


def drop_replies(wire: str) -> Strike:
    """Carry requests out and lose what was answered."""

    def strike(world: World, dice: random.Random) -> None:
        proxy = world.wires[wire]
        before = proxy.struck
        proxy.drop_replies(dice.randrange(1, 6))
        end = time.monotonic() + 1.0
        while time.monotonic() < end and proxy.struck == before:
            time.sleep(0.005)

    return strike


def stall(wire: str, *, least_s: float, most_s: float) -> Strike:
    """Let nothing through a wire for a while; connections stay."""

    def strike(world: World, dice: random.Random) -> None:
        world.wires[wire].stall(on=True)
        time.sleep(dice.uniform(least_s, most_s))
        world.wires[wire].stall(on=False)

    return strike


def lock_ledger(world: World, dice: random.Random) -> None:
    """Hold SQLite's one writer for a while, up to longer than anybody waits for it."""
    path = world.places.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(dice.uniform(0.5, 8.0))
        connection.execute("ROLLBACK")


def cut(wire: str, *, least_s: float, most_s: float) -> Strike:
    """Cut a wire for a while."""

    def strike(world: World, dice: random.Random) -> None:
        world.wires[wire].refuse(on=True)
        time.sleep(dice.uniform(least_s, most_s))
        world.wires[wire].refuse(on=False)

    return strike


#: Each fault and its weight. Names begin with what is struck.
FAULTS: Final[Mapping[str, tuple[int, Strike]]] = MappingProxyType(
    {
        "edge killed": (5, kill("edge")),
        "edge killed, the second": (3, kill("edge2")),
        "bridge killed": (5, kill("bridge")),
        "bridge killed, the second": (3, kill("bridge2")),
        "beat killed": (2, kill("beat")),
        "edge frozen": (4, freeze("edge", least_s=0.5, most_s=3.0)),
        "bridge frozen": (3, freeze("bridge", least_s=0.5, most_s=7.0)),
        "bridge frozen, the second": (3, freeze("bridge2", least_s=0.5, most_s=7.0)),
        "beat frozen": (1, freeze("beat", least_s=1.0, most_s=3.0)),
        "reservations flushed": (6, redis_command("reservations", "FLUSHALL")),
        "reservations restarted empty": (5, restart("reservations", least_s=0.0, most_s=2.0)),
        "reservations frozen": (4, freeze_server("reservations", least_s=0.5, most_s=3.0)),
        "reservations robbed": (4, delete_some),
        "reservations scripts flushed": (
            1,
            redis_command("reservations", "SCRIPT", "FLUSH", "SYNC"),
        ),
        "reservations clients killed": (
            2,
            redis_command("reservations", "CLIENT", "KILL", "TYPE", "normal"),
        ),
        "reservations replies dropped": (5, drop_replies("reservations")),
        "broker restarted": (3, restart("broker", least_s=0.0, most_s=2.5)),
        "broker reset": (2, reset("broker")),
        "broker replies dropped": (3, drop_replies("broker")),
        "backend away": (4, restart("backend", least_s=1.0, most_s=4.0)),
        "backend frozen": (2, freeze_server("backend", least_s=0.5, most_s=3.0)),
        "edge connections reset": (3, reset("edge2")),
        "edge replies dropped": (4, drop_replies("edge")),
        "edge replies dropped, the second": (3, drop_replies("edge2")),
        "edge stalled": (3, stall("edge", least_s=0.2, most_s=2.0)),
    }
)
#: That of a ledger in a file.
FILE_FAULTS: Final[Mapping[str, tuple[int, Strike]]] = MappingProxyType(
    {"ledger locked": (8, lock_ledger)}
)
#: Those of a ledger that is a server.
SERVER_FAULTS: Final[Mapping[str, tuple[int, Strike]]] = MappingProxyType(
    {
        "ledger stopped at once": (6, restart("postgres", least_s=0.5, most_s=3.0)),
        "ledger frozen": (4, freeze_server("postgres", least_s=0.5, most_s=4.0)),
        "ledger connections reset": (5, reset("ledger")),
        "ledger replies dropped": (7, drop_replies("ledger")),
        "ledger cut off": (4, cut("ledger", least_s=0.5, most_s=3.0)),
    }
)
#: Those that happen only when they are asked for by name, and then often.
MORE_FAULTS: Final[Mapping[str, tuple[int, Strike]]] = MappingProxyType(
    {"reservations full": (40, fill_reservations)}
)


class Nemesis:
    """Strikes at a pace, as the seed says."""

    def __init__(
        self, world: World, *, seed: int, pace_s: float, also: Collection[str] = ()
    ) -> None:
        self._world = world
        self._dice = random.Random(f"{seed}:nemesis:{world.database}")
        self._pace_s = pace_s
        known = {**FAULTS, **(FILE_FAULTS if world.postgres is None else SERVER_FAULTS)}
        known |= {name: MORE_FAULTS[name] for name in also}
        self._strikes = {name: strike for name, (_, strike) in known.items()}
        self._weights = [weight for weight, _ in known.values()]
        self.faults: list[Fault] = []

    def strike(self) -> Fault:
        """Let one thing go wrong, now."""
        name = self._dice.choices(list(self._strikes), weights=self._weights)[0]
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
