"""Every key of the reservations: its name, its type and who writes it.

All keys of a queue share the hash tag ``{db:<queue>}``; under ``g<n>:`` lies one generation:

================  ======  =====================================================================
``gen``           string  number of the generation that counts; written last by a rebuild
``building``      string  token of who rebuilds just now
``wake``          channel jobs came to a lane: ``{queue, lane, n}``
``lane:<lane>``   zset    ready jobs, ``<seq>:<id>`` by -priority
``heads``         zset    first ready job of each lane, ``<seq>:<id> <lane>`` by -priority
``lanes``         zset    spec of each lane by the version it came with; only grows
``lanes_ver``     string  counts lanes
``scheduled``     zset    job id by the moment it becomes ready, epoch ms
``granting``      zset    job id by the moment an untaken grant lapses
``reserved``      zset    job id by the moment its lease ends
``progressed``    set     jobs whose holder said something new of their progress
``folded``        hash    ready jobs as a rebuild found them, ``<ver> <rank> <lane> <seq>`` by id
``mark``          string  up to when the ledger's changes are in, epoch ms ``:`` run of the server
``job:<id>``      hash    ver lane member rank, and of a held job lease worker lease_ms json cancel
                          progress (``<lease> <json>``)
================  ======  =====================================================================

Global ones: ``{db:}:seen`` zset, worker id by when it was last seen; ``{db:}:online`` zset, the
same but for those that said goodbye since; ``{db:}:loads`` hash, worker id to its machine's load
averages; ``{db:}:revoked`` set, ids of revoked credentials; ``{db:}:orders`` zset, worker id by
twice the cursor of its orders, plus one while it drains; ``{db:}:ordered`` channel, id of a worker
that has new ones; ``{db:}:owner:<what>`` string, which process owns a duty; ``{db:}:beat`` string,
when beat last nudged a bridge; ``{db:}:rate:<what>`` string, how many calls all edges counted, gone
when its window is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SEEN: Final = "{db:}:seen"
ONLINE: Final = "{db:}:online"
#: a worker silent for so long is offline
OFFLINE_MS: Final = 60_000
LOADS: Final = "{db:}:loads"
REVOKED: Final = "{db:}:revoked"
ORDERS: Final = "{db:}:orders"
#: channel on which workers with new orders are named
ORDERED: Final = "{db:}:ordered"
BEAT: Final = "{db:}:beat"
#: channel: jobs have ended, so Celery must be told; as drop.lua writes it
ENDED: Final = "{db:}:ended"
#: what counts that edges share begin with
RATES: Final = "{db:}:rate:"
#: pattern of all wake-up channels
WAKE_PATTERN: Final = "{db:*}:wake"

#: a brace would break the hash tag, a control character the logs
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def owner(duty: str) -> str:
    """Name the key that says which process owns a duty."""
    return f"{{db:}}:owner:{duty}"


def rate(what: str) -> str:
    """Name the key under which all edges count something together."""
    return f"{RATES}{what}"


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue in one generation."""

    queue: str
    generation: int = 0

    @property
    def tag(self) -> str:
        """What all keys of the queue begin with."""
        return f"{{db:{self.queue}}}:"

    @property
    def pointer(self) -> str:
        """The key that names the generation that counts."""
        return f"{self.tag}gen"

    @property
    def building(self) -> str:
        """The key of whoever rebuilds."""
        return f"{self.tag}building"

    @property
    def channel(self) -> str:
        """The wake-up channel."""
        return f"{self.tag}wake"

    @property
    def prefix(self) -> str:
        """What all keys of the generation begin with."""
        return f"{self.tag}g{self.generation}:"

    @property
    def mark(self) -> str:
        """The key that says up to when the generation is complete."""
        return f"{self.prefix}mark"

    def generation_of(self, key: str) -> int:
        """Read the generation out of one of its keys; 0 when the key is of none."""
        number, _, rest = key.removeprefix(f"{self.tag}g").partition(":")
        return int(number) if rest and number.isdecimal() else 0

    @property
    def script_keys(self) -> list[str]:
        """KEYS of every script, as the prelude numbers them."""
        names = ("scheduled", "granting", "reserved", "lanes", "lanes_ver", "heads")
        return [self.pointer, *(self.prefix + name for name in names)]
