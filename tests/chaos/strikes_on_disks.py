"""How stores lose memory or disk: set back in time, unable to save, with nowhere to write."""

import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

from tests.chaos.brokers import redis_at
from tests.chaos.strikes import Strike
from tests.chaos.world import World

#: As good as none: whatever is written lies beyond it.
NO_BYTES: Final = 1


def set_back(world: World, dice: random.Random) -> None:
    """Restart the reservations with what they held some seconds ago, as a cut log leaves them."""
    server = world.servers.reservations
    saved = server.folder / "dump.rdb"
    with redis_at(server.url) as client:
        client.save()
    try:
        time.sleep(dice.uniform(0.5, 3.0))
        server.kill()
        server.start()
    finally:
        # whoever restarts it empty means it
        saved.unlink(missing_ok=True)


def refuse_to_write(world: World, dice: random.Random) -> None:
    """Let the reservations find that they cannot save: what writes is refused for a while."""
    server = world.servers.reservations
    in_the_way = server.folder / "dump.rdb"
    in_the_way.mkdir()
    try:
        with redis_at(server.url) as client:
            client.config_set("save", "3600 1000000")
            client.bgsave()
            time.sleep(dice.uniform(0.5, 4.0))
            world.counts["writes refused by reservations"] += _refused(server.url)
    finally:
        in_the_way.rmdir()
        with redis_at(server.url) as client:
            client.config_set("save", "")


def _refused(url: str) -> bool:
    with redis_at(url) as client:
        found: str = client.info("persistence")["rdb_last_bgsave_status"]
        return found == "err"


def fill_disk(role: str) -> Strike:
    """Let a process write to no file for a while, as on a full disk: ledger, artifacts, log."""

    def strike(world: World, dice: random.Random) -> None:
        with _without_disk(world.pid(role)):
            time.sleep(dice.uniform(0.5, 4.0))

    return strike


@contextmanager
def _without_disk(pid: int) -> Iterator[None]:
    _bound(pid, NO_BYTES)
    try:
        yield
    finally:
        _bound(pid, resource.RLIM_INFINITY)


def _bound(pid: int, size: int) -> None:
    """Bound the files that a process and its children may write; only the soft limit."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                _, hard = one.rlimit(psutil.RLIMIT_FSIZE)
                one.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
