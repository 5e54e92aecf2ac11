"""How things go wrong, one function a way: each strikes, lasts, and is undone.

`World.heal` undoes what is left.
"""

import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from tests.chaos.brokers import redis_at
from tests.chaos.world import World

#: So long a process of ours may take to be up on a busy machine, before the fault ends anyway.
STARTED_S = 15.0

Strike = Callable[[World, random.Random], None]


def kill(role: str) -> Strike:
    """SIGKILL a role; the stack starts it again."""

    def strike(world: World, _dice: random.Random) -> None:
        world.signal(role, signal.SIGKILL)

    return strike


def end(role: str) -> Strike:
    """SIGTERM a role, as a rolling restart does; the stack starts it again."""

    def strike(world: World, _dice: random.Random) -> None:
        world.signal(role, signal.SIGTERM)

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
        world.freeze(world.servers.pids_of(name))
        time.sleep(dice.uniform(least_s, most_s))
        world.thaw()

    return strike


def restart(name: str, *, least_s: float, most_s: float) -> Strike:
    """Kill a server as the kernel would, and start it again after a while."""

    def strike(world: World, dice: random.Random) -> None:
        server = getattr(world.servers, name)
        if name == "postgres":
            # "-m immediate": it ends its children and recovers at the next start
            server.process.send(signal.SIGQUIT)
            server.stop()
        else:
            server.kill()
        time.sleep(dice.uniform(least_s, most_s))
        server.start()

    return strike


def restart_slowly(name: str) -> Strike:
    """Kill a server that takes long to come back; meanwhile other things go wrong."""

    def strike(world: World, _dice: random.Random) -> None:
        world.mended()
        server = getattr(world.servers, name)
        server.kill()
        world.mend(server.start)

    return strike


def redis_command(name: str, *words: str) -> Strike:
    """Send an administrator's command to a Redis."""

    def strike(world: World, _dice: random.Random) -> None:
        with redis_at(getattr(world.places, f"{name}_url")) as client:
            client.execute_command(*words)

    return strike


def delete_some(world: World, dice: random.Random) -> None:
    """Delete keys of one kind from the reservations."""
    part = dice.choice(("job:", "folded", "lane:", "heads", "reserved", "granting", "lanes", "gen"))
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


def slow(wire: str) -> Strike:
    """Let everything on a wire arrive a fifth of a second later, there and back."""

    def strike(world: World, dice: random.Random) -> None:
        world.wires[wire].slow(0.2)
        time.sleep(dice.uniform(1.0, 5.0))
        world.wires[wire].slow(0.0)

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


def jump(role: str) -> Strike:
    """Set a process's wall clock wrong, ahead or behind, by up to a minute or up to an hour."""

    def strike(world: World, dice: random.Random) -> None:
        farthest_s = dice.choice((60.0, 3600.0))
        world.skews[role].jump(dice.choice((-1, 1)) * dice.uniform(5.0, farthest_s))
        world.counts["clocks that jumped"] += 1

    return strike


def start_without_clock(role: str) -> Strike:
    """Let a process start and work while the reservations, whose clock all go by, are away."""

    def strike(world: World, dice: random.Random) -> None:
        server = world.servers.reservations
        server.kill()
        world.signal(role, signal.SIGKILL)
        try:
            world.counts["starts without a clock"] += world.is_up(role, STARTED_S)
            time.sleep(dice.uniform(1.0, 3.0))
        finally:
            server.start()

    return strike
