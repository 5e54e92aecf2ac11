"""What may go wrong with which stack: every fault by its name, with its weight."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from tests.chaos.failovers import fail_over, fail_over_late, two_primaries, wake_up_as_primary
from tests.chaos.servers import Shape
from tests.chaos.strikes import (
    Strike,
    cut,
    delete_some,
    drop_replies,
    end,
    fill_reservations,
    freeze,
    freeze_server,
    jump,
    kill,
    lock_ledger,
    redis_command,
    reset,
    restart,
    restart_slowly,
    slow,
    stall,
    start_without_clock,
)
from tests.chaos.strikes_on_disks import fill_disk, refuse_to_write, set_back

Faults = Mapping[str, tuple[int, Strike]]

#: Each fault and its weight. Names begin with what is struck.
FAULTS: Final[Faults] = MappingProxyType(
    {
        "edge killed": (5, kill("edge")),
        "edge killed, the second": (3, kill("edge2")),
        "bridge killed": (5, kill("bridge")),
        "bridge killed, the second": (3, kill("bridge2")),
        "beat killed": (2, kill("beat")),
        "beat killed, the second": (1, kill("beat2")),
        "edge told to end, the second": (2, end("edge2")),
        "bridge told to end": (1, end("bridge")),
        "bridge told to end, the second": (2, end("bridge2")),
        "edge without disk": (3, fill_disk("edge")),
        "bridge without disk, the second": (2, fill_disk("bridge2")),
        "edge frozen": (4, freeze("edge", least_s=0.5, most_s=3.0)),
        "bridge frozen": (3, freeze("bridge", least_s=0.5, most_s=7.0)),
        "bridge frozen, the second": (3, freeze("bridge2", least_s=0.5, most_s=7.0)),
        "beat frozen": (1, freeze("beat", least_s=1.0, most_s=3.0)),
        "reservations flushed": (6, redis_command("reservations", "FLUSHALL")),
        "reservations restarted empty": (5, restart("reservations", least_s=0.0, most_s=2.0)),
        "reservations frozen": (4, freeze_server("reservations", least_s=0.5, most_s=3.0)),
        "reservations robbed": (4, delete_some),
        "reservations set back in time": (4, set_back),
        "reservations cannot save": (3, refuse_to_write),
        "reservations slow": (2, slow("reservations")),
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
        "broker frozen": (2, freeze_server("broker", least_s=0.5, most_s=3.0)),
        "broker reset": (2, reset("broker")),
        "broker replies dropped": (3, drop_replies("broker")),
        "backend away": (4, restart("backend", least_s=1.0, most_s=4.0)),
        "backend slow": (1, slow("backend")),
        "backend frozen": (2, freeze_server("backend", least_s=0.5, most_s=3.0)),
        "edge connections reset": (3, reset("edge2")),
        "edge replies dropped": (4, drop_replies("edge")),
        "edge replies dropped, the second": (3, drop_replies("edge2")),
        "edge stalled": (3, stall("edge", least_s=0.2, most_s=2.0)),
    }
)
#: That of a ledger in a file.
FILE_FAULTS: Final[Faults] = MappingProxyType({"ledger locked": (8, lock_ledger)})
#: Those of a ledger that is a server.
SERVER_FAULTS: Final[Faults] = MappingProxyType(
    {
        "ledger stopped at once": (6, restart("postgres", least_s=0.5, most_s=3.0)),
        "ledger frozen": (4, freeze_server("postgres", least_s=0.5, most_s=4.0)),
        "ledger connections reset": (5, reset("ledger")),
        "ledger replies dropped": (7, drop_replies("ledger")),
        "ledger cut off": (4, cut("ledger", least_s=0.5, most_s=3.0)),
    }
)
#: Those of reservations behind a Sentinel.
PAIR_FAULTS: Final[Faults] = MappingProxyType(
    {
        "reservations failed over": (0, fail_over),
        "reservations failed over late": (0, fail_over_late),
        "reservations on two primaries": (0, two_primaries),
        "reservations woken as primary": (0, wake_up_as_primary),
    }
)
#: Those of RabbitMQ, beyond those of any broker.
RABBITMQ_FAULTS: Final[Faults] = MappingProxyType(
    {
        "broker restarted": (0, restart_slowly("broker")),
        "broker cut off": (0, cut("broker", least_s=0.5, most_s=4.0)),
        "broker frozen": (0, freeze_server("broker", least_s=0.5, most_s=4.0)),
        "broker stalled": (0, stall("broker", least_s=0.5, most_s=3.0)),
    }
)
#: Those of processes in other times.
CLOCK_FAULTS: Final[Faults] = MappingProxyType(
    {
        "edge's clock jumped, the second's": (0, jump("edge2")),
        "bridge's clock jumped, the second's": (0, jump("bridge2")),
        "beat's clock jumped, the second's": (0, jump("beat2")),
        "edge started without a clock, the second": (0, start_without_clock("edge2")),
        "bridge started without a clock, the second": (0, start_without_clock("bridge2")),
    }
)
#: Those that happen only when they are asked for by name, and then often.
MORE_FAULTS: Final[Faults] = MappingProxyType({"reservations full": (40, fill_reservations)})


def faults_of(shape: Shape, also: Collection[str] = ()) -> Faults:
    """Return what may happen to a stack of this shape."""
    found = {**FAULTS, **(FILE_FAULTS if shape.database == "sqlite" else SERVER_FAULTS)}
    if shape.sentinel:
        # who is told by a Sentinel where to go passes no proxy; a replica is not set back alone
        for name in ("replies dropped", "slow", "set back in time", "cannot save"):
            del found[f"reservations {name}"]
    return found | turns_of(shape) | {name: MORE_FAULTS[name] for name in also}


def turns_of(shape: Shape) -> Faults:
    """Return what the shape is there for: each of them happens, one after the other."""
    found: dict[str, tuple[int, Strike]] = {}
    for wanted, faults in (
        (shape.sentinel, PAIR_FAULTS),
        (shape.rabbitmq, RABBITMQ_FAULTS),
        (shape.skewed, CLOCK_FAULTS),
    ):
        found |= faults if wanted else {}
    return found
