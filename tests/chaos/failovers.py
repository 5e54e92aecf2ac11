"""How the primary of the reservations is lost to its replica: killed, lagging behind, or not lost.

Each way says how it went in `World.counts`: what was to happen, and whether it did.
"""

import random
import time
from contextlib import suppress
from typing import Any, Final

import psutil
import redis

from tests.chaos.world import World, spin
from tests.sentinels import Pair
from tests.services import Valkey

#: So long a Sentinel may take to notice, to agree with itself, and to promote.
PROMOTED_S: Final = 8.0
#: A replica that lags so much has lost much of what its primary promised.
LAG_S: Final = 1.5


def fail_over(world: World, dice: random.Random) -> None:
    """Kill the primary; its replica takes over; it comes back and takes itself for the primary."""
    pair = _pair(world)
    died = pair.primary()
    died.kill()
    _await_another(world, died)
    time.sleep(dice.uniform(0.0, 1.0))
    died.start()


def fail_over_late(world: World, dice: random.Random) -> None:
    """Promote a replica that lacks what its primary has promised of late."""
    pair = _pair(world)
    died = pair.primary()
    world.freeze([pair.other(died).pid])
    time.sleep(LAG_S)
    died.kill()
    world.thaw()
    _await_another(world, died)
    time.sleep(dice.uniform(0.0, 1.0))
    died.start()


def two_primaries(world: World, dice: random.Random) -> None:
    """Promote the replica of a primary that lives: half of the processes stay with the old one.

    A Sentinel makes it a replica of the new one only after eight seconds or more.
    """
    pair = _pair(world)
    old = pair.primary()
    pair.sentinel.ask("FAILOVER")
    if not _await_another(world, old):
        return
    new = pair.primary()
    for role in dice.choice((("edge", "bridge2"), ("edge2", "bridge"))):
        _lead_away(world.pid(role), old)
    before = _asked(old), _asked(new)
    time.sleep(dice.uniform(2.0, 6.0))
    after = _asked(old), _asked(new)
    # who was demoted meanwhile answers too, but then there are no two
    two = set(pair.primaries()) == {old, new}
    both = all(later > earlier for earlier, later in zip(before, after, strict=True))
    world.counts["two primaries at work"] += two and both


def wake_up_as_primary(world: World, dice: random.Random) -> None:
    """Freeze the primary until it is replaced; it wakes up and knows nothing of that."""
    pair = _pair(world)
    old = pair.primary()
    world.freeze([old.pid])
    _await_another(world, old)
    world.thaw()
    time.sleep(dice.uniform(0.5, 2.0))


def _pair(world: World) -> Pair:
    pair = world.servers.pair
    assert pair is not None
    return pair


def _await_another(world: World, old: Valkey) -> bool:
    """Wait for another primary; there is none when its replica was not in step."""
    moved = spin(lambda: _pair(world).primary() is not old, PROMOTED_S)
    world.counts["failovers"] += moved
    world.counts["failovers that could not be"] += not moved
    return moved


def _lead_away(pid: int, server: Valkey) -> None:
    """Cut a process's connections to a server; whom it turns to then, the Sentinel says."""
    some = [psutil.Process(pid)]
    some += some[0].children(recursive=True)
    with server.client() as client:
        for one in some:
            for found in one.net_connections("tcp"):
                if found.raddr and found.raddr.port == server.port:
                    with suppress(redis.ResponseError):
                        client.execute_command(
                            "CLIENT", "KILL", "ADDR", f"{found.laddr.ip}:{found.laddr.port}"
                        )


def _asked(server: Valkey) -> int:
    """Count the scripts that a server was asked to run."""
    with server.client() as client:
        stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))
