"""How remote workers look like Celery workers: which nodes there are, and what is said of each.

A worker is a node while it was seen within a minute and has not said goodbye. Of any number of
bridges one owns the fleet, by a lease in the reservations, and only that one speaks for the nodes:
two voices for one node would be two replies to one question.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Final

import redis

from broker.bridge.announcer import Announcer
from broker.clock import Clock, to_ms
from broker.errors import ReservationsUnavailable, Unavailable
from broker.ledger import credential_rows
from broker.ledger.engine import Ledger
from broker.ledger.fleet import Known, known, known_of, running
from broker.records import Job
from broker.reservations.keys import LOADS, owner
from broker.reservations.store import Reservations

logger = logging.getLogger(__name__)

#: what Celery is told to expect; twice as long without one and the node is dead
HEARTBEAT_S: Final = 10.0
#: heartbeats of all nodes together, a second: of more nodes each beats more seldom, and says so
BEATS_PER_S: Final = 100
#: nodes spoken of in one step, which must end well before another bridge may take the fleet
SPOKEN_MAX: Final = 100
#: between a monitor's asking and the heartbeats: its subscription follows its question
ASKED_S: Final = 0.5
OWNER_MS: Final = 8_000
OWNER: Final = owner("fleet")
#: running jobs looked at for one heartbeat
ACTIVE_MAX: Final = 5_000
IDENT: Final = "drawbridge-worker"

_RENEW: Final = """
if redis.call("GET", KEYS[1]) == ARGV[1] then
    return redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return redis.call("SET", KEYS[1], ARGV[1], "NX", "PX", ARGV[2]) and 1 or 0
"""
_RESIGN: Final = """
return redis.call("GET", KEYS[1]) == ARGV[1] and redis.call("DEL", KEYS[1]) or 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One remote worker as Celery sees it."""

    name: str
    worker_id: str
    grants: int = 0
    #: when its program said hello, or when it was first seen; epoch s
    started: float = 0.0
    hello: Mapping[str, Any] = field(default_factory=dict)
    active: Sequence[Job] = ()
    #: what it was ordered to run at once; None leaves it to its owner
    ordered: int | None = None
    #: load averages of its machine; None when it never said any
    load: str | None = None
    #: whether it claims no more
    draining: bool = False
    #: queues from which it claims nothing, for now
    paused: Sequence[str] = ()
    #: queues that its tokens allow; None does not restrict, or was not asked for
    allowed: frozenset[str] | None = None

    def allows(self, queue: str) -> bool:
        """Tell whether its tokens let it claim from a queue."""
        return self.allowed is None or queue in self.allowed

    def claims_from(self, queue: str) -> bool:
        """Tell whether it may claim from a queue now."""
        return not self.draining and queue not in self.paused and self.allows(queue)

    @property
    def own_slots(self) -> int:
        """How many jobs its owner lets it run at once."""
        said = self.hello.get("concurrency")
        return said if isinstance(said, int) and said > 0 else 1

    @property
    def slots(self) -> int:
        """How many jobs it runs at once."""
        return self.own_slots if self.ordered is None else min(self.ordered, self.own_slots)

    @property
    def processed(self) -> int:
        """How many jobs it has ended."""
        return max(0, self.grants - len(self.active))


class Fleet:
    """The nodes of all remote workers; ``step`` is run by one loop, ``nodes`` by any thread."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        announcer: Announcer,
        *,
        clock: Clock,
        suffix: str,
        token: str,
    ) -> None:
        """Speak for workers as ``<workerId>@<suffix>``, owning the fleet under ``token``."""
        self._ledger = ledger
        self._reservations = reservations
        self._client: Any = reservations.client
        self._announcer = announcer
        self._clock = clock
        self._suffix = suffix
        self._token = token
        self._renew = self._client.register_script(_RENEW)
        self._resign = self._client.register_script(_RESIGN)
        self._online: dict[str, Node] = {}
        #: when each is to be spoken of next, monotonic
        self._due: dict[str, float] = {}
        #: whether this bridge speaks for the nodes
        self.owned = False

    def name(self, worker_id: str) -> str:
        """Return the node name of a worker; ``%w`` in the suffix stands for its id."""
        return f"{worker_id}@{self._suffix.replace('%w', worker_id)}"

    def step(self) -> None:
        """Take or keep the fleet, and say who came, who is there and who left.

        Raises:
            Unavailable: a store is away.
            OperationalError: the Celery broker is.
        """
        try:
            self.owned = bool(self._renew(keys=[OWNER], args=[self._token, OWNER_MS]))
            if not self.owned:
                self._online, self._due = {}, {}
                return
            seen = self._reservations.online(to_ms(self._clock.now()))
        except (redis.RedisError, ReservationsUnavailable) as error:
            self.owned = False
            raise ReservationsUnavailable from error
        self._say(seen, time.monotonic())

    def beat(self) -> None:
        """Say of every node that it is there, in a moment: who asked may not listen quite yet."""
        soon = time.monotonic() + ASKED_S
        self._due = {one: min(at, soon) for one, at in list(self._due.items())}

    def nodes(self, *, queues: bool = False) -> list[Node]:
        """Return the nodes as they are now, or as they were when the ledger is away.

        With ``queues`` also which their tokens allow. None unless this bridge owns the fleet.
        """
        if not self.owned:
            return []
        last = dict(self._online)
        try:
            found = self._look(list(last))
            allowed = self._allowed(list(last)) if queues else {}
            return [replace(one, allowed=allowed.get(name)) for name, one in found.items()]
        except Unavailable:
            return list(last.values())

    def names(self) -> list[str]:
        """Return the names of the nodes without asking any store."""
        # another thread may be speaking of them
        return [node.name for node in list(self._online.values())] if self.owned else []

    def leave(self) -> None:
        """Say that all nodes are offline and let another bridge speak for them."""
        if not self.owned:
            return
        now = self._clock.now().timestamp()
        for node in self._online.values():
            self._announcer.worker("worker-offline", node.name, _fields(node, HEARTBEAT_S), at=now)
        self.owned, self._online, self._due = False, {}, {}
        try:
            self._resign(keys=[OWNER], args=[self._token])
        except redis.RedisError as error:
            raise ReservationsUnavailable from error

    def _loads(self, worker_ids: Sequence[str]) -> Mapping[str, str | None]:
        """Read what the machines said of their load."""
        if not worker_ids:
            return {}
        try:
            said: list[str | None] = self._client.hmget(LOADS, list(worker_ids))
        except redis.RedisError as error:
            raise ReservationsUnavailable from error
        return dict(zip(worker_ids, said, strict=True))

    def _look(self, worker_ids: Sequence[str]) -> dict[str, Node]:
        loads = self._loads(worker_ids)
        few = len(worker_ids) <= SPOKEN_MAX * 2
        with self._ledger.read() as conn:
            told = known_of(conn, worker_ids, limit=0) if few else known(conn)
            held = running(conn, limit=ACTIVE_MAX, workers=worker_ids if few else None)
        active: dict[str | None, list[Job]] = {}
        for job in held:
            active.setdefault(job.claimed_by, []).append(job)
        return {
            one: _node(self.name(one), one, told.get(one), active.get(one, ()), loads.get(one))
            for one in worker_ids
        }

    def _allowed(self, worker_ids: Sequence[str]) -> dict[str, frozenset[str] | None]:
        """Read which queues workers' tokens allow; who has none of ours may have others."""
        with self._ledger.read() as conn:
            good = credential_rows.good_of(conn, worker_ids, self._clock.now())
        found: dict[str, frozenset[str] | None] = {}
        for one in good:
            queues, name = one.policy.queues, one.worker_id or ""
            before = found.get(name, frozenset())
            found[name] = None if queues is None or before is None else before.union(queues)
        return found

    def _say(self, seen: Sequence[str], now: float) -> None:
        """Say who came, who is due and who left; what is too much for one step waits for the next.

        Order of a node: online, heartbeats, offline; an outage in between repeats none of them.
        """
        freq_s = max(HEARTBEAT_S, len(seen) / BEATS_PER_S)
        there, at = set(seen), self._clock.now().timestamp()
        new = [one for one in seen if one not in self._online]
        when = {one: self._due.get(one, now) for one in self._online if one in there}
        due = sorted((at_s, one) for one, at_s in when.items() if at_s <= now)
        spoken = [*new, *(one for _, one in due)][:SPOKEN_MAX]
        for worker_id, node in (self._look(spoken) if spoken else {}).items():
            came = worker_id not in self._online
            kind = "worker-online" if came else "worker-heartbeat"
            self._announcer.worker(kind, node.name, _fields(node, freq_s), at=at)
            self._online[worker_id], self._due[worker_id] = node, now + freq_s
            if came:
                logger.info("node %s is online", node.name, extra={"action": "node"})
        for worker_id in [one for one in self._online if one not in there][:SPOKEN_MAX]:
            node = self._online[worker_id]
            self._announcer.worker("worker-offline", node.name, _fields(node, freq_s), at=at)
            del self._online[worker_id]
            self._due.pop(worker_id, None)
            logger.info("node %s is offline", node.name, extra={"action": "node"})


def _node(
    name: str, worker_id: str, told: Known | None, active: Sequence[Job], load: str | None
) -> Node:
    if told is None:
        return Node(name=name, worker_id=worker_id, active=tuple(active), load=load)
    return Node(
        name=name,
        worker_id=worker_id,
        grants=told.grants,
        started=(told.hello_at or told.first_seen_at).timestamp(),
        hello=told.hello,
        active=tuple(active),
        ordered=told.concurrency,
        load=load,
        draining=told.draining,
        paused=told.paused,
    )


def _fields(node: Node, freq_s: float) -> dict[str, Any]:
    return {
        "freq": freq_s,
        "active": len(node.active),
        "processed": node.processed,
        "loadavg": [float(one) for one in (node.load or "0,0,0").split(",")],
        "sw_ident": IDENT,
        "sw_ver": str(node.hello.get("version") or version("celery-drawbridge")),
        "sw_sys": str(node.hello.get("system") or "unknown"),
    }
