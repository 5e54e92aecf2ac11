"""What one bridge process holds and runs: its stores, and the loops over them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import redis
from celery import Celery
from celery._state import _set_task_join_will_block

from broker.bridge import maintenance
from broker.bridge.announcer import Announcer
from broker.bridge.answers import Answers
from broker.bridge.commands import Commands
from broker.bridge.control import Mailbox, quiet_revokes
from broker.bridge.decode import BUILTIN, Decoder
from broker.bridge.fetch import Drain, ReadAhead
from broker.bridge.gauges import Gauges, OutboxWatch
from broker.bridge.loops import STOP_S, Loop, every
from broker.bridge.nodes import Fleet
from broker.bridge.purges import Purges
from broker.bridge.relay import Relay
from broker.bridge.revokes import Revokes
from broker.bridge.settle import Settler
from broker.bridge.strangers import LOOK_S as STRANGERS_S
from broker.bridge.strangers import Strangers
from broker.clock import Clock, to_ms
from broker.errors import ConfigurationError, ReservationsUnavailable
from broker.ledger.engine import Ledger
from broker.orders import OrderBook
from broker.progress import tell_progress
from broker.queue import JobQueue
from broker.reservations.keys import BEAT, QUEUE_NAME
from broker.reservations.store import Reservations
from broker.settings import BridgeSettings, QueueSettings, StoreSettings
from broker.storage import artifact_store
from broker.upkeep import Upkeep

logger = logging.getLogger(__name__)

#: how long a nudge of beat is remembered; it nudges every second
BEAT_MS: Final = 60_000
#: between looks at who was seen
LOOK_S: Final = 0.5
#: between looks at what was revoked
REVOKE_S: Final = 0.05
#: between looks at how long Celery was not told
WATCH_S: Final = 5.0
#: between looks at how far running jobs are: what is said of one in between is told once
PROGRESS_S: Final = 1.0
#: a nudge looks at the outbox only when the loop is this late
LATE_S: Final = 2.0
#: rows a nudge relays at most: this many takes
NUDGE_TAKES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a bridge is told."""

    bridge: BridgeSettings
    stores: StoreSettings
    queue: QueueSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read them from the environment."""
        return cls(
            bridge=BridgeSettings.from_env(environ),
            stores=StoreSettings.from_env(environ),
            queue=QueueSettings.from_env(environ),
        )


class Bridge:
    """One bridge; start and stop may be called twice."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        """Open the stores lazily."""
        for name in settings.bridge.queues:
            if not QUEUE_NAME.fullmatch(name) or name == maintenance.QUEUE:
                raise ConfigurationError(f"The queue {name!r} can not be bridged")
        self.app = app
        self.settings = settings
        #: the Celery worker's own node, in whose name events without a remote worker go out
        self.nodename = "bridge"
        stores = settings.stores
        self.ledger = Ledger(stores.database_url, synchronous=stores.sqlite_synchronous)
        self.reservations = Reservations.connect(stores.reservations_url)
        self.clock = Clock(self.reservations.clock_ms, else_ms=self.ledger.clock_ms)
        self.queue = JobQueue(
            self.ledger, self.reservations, clock=self.clock, settings=settings.queue
        )
        self.upkeep = Upkeep(self.queue)
        self.files = artifact_store(settings.stores)
        self.revokes = Revokes(self.queue)
        self.purges = Purges(app, self.queue, queues=settings.bridge.queues)
        self._token = secrets.token_hex(8)
        self._voice = Announcer(app)
        self.fleet = Fleet(
            self.ledger, self.reservations, self._voice,
            clock=self.clock, suffix=settings.bridge.node_suffix, token=self._token,
        )  # fmt: skip
        answers = Answers(queues=settings.bridge.queues, clock=lambda: int(app.clock.value))
        orders = OrderBook(self.ledger, self.reservations, self.clock)
        self._mailbox = Mailbox(
            app, self.fleet, answers, Commands(orders, queues=settings.bridge.queues),
            self.revokes, name=f"drawbridge-fleet-{self._token}",
        )  # fmt: skip
        self.drains: list[Drain] = []
        self._loops: list[Loop] = []
        self._last_words: list[Callable[[], None]] = []
        self.gauges = Gauges(
            self.ledger, self.reservations, clock=self.clock, loops=lambda: self._loops
        )

    @property
    def by_drain(self) -> bool:
        """Whether the Celery broker is a Redis, drained by us; else a Celery consumer ingests."""
        return bool(self.app.connection_for_read().transport.driver_type == "redis")

    def decoder(self, queue: str) -> Decoder:
        """Return what reads the messages of a queue."""
        names = (name for name in self.app.tasks if name.startswith(BUILTIN))
        return Decoder(
            queue=queue, builtins=frozenset(names), timezone=self.app.timezone,
            origins=frozenset(self.settings.bridge.queues),
        )  # fmt: skip

    def read_ahead(self, queue: str) -> ReadAhead:
        """Return what bounds the jobs of a queue that wait with us."""
        return ReadAhead(self.queue, queue, mark=self.settings.bridge.read_ahead)

    def start(self, nodename: str) -> None:
        """Start everything, as part of a Celery worker of that name; returns at once."""
        if self._loops:
            return
        self.nodename = nodename
        # what we send on is nobody's here to wait for; without it each send would subscribe
        _set_task_join_will_block(True)  # noqa: FBT003  Celery's own
        quiet_revokes()
        self._declare()
        self._loops = [*self._make_drains(), *self._make_loops()]
        for loop in self._loops:
            loop.start()
        logger.info(
            "drawbridge bridge %s: queues %s, nodes @%s, ingest by %s",
            self.nodename, ", ".join(self.settings.bridge.queues),
            self.settings.bridge.node_suffix, "drain" if self.by_drain else "consumer",
            extra={"action": "start"},
        )  # fmt: skip

    def stop(self) -> None:
        """Stop everything: ingest first, the relay last, so that it tells what there is to tell."""
        loops, self._loops = self._loops, []
        if not loops:
            return
        for loop in loops:
            loop.stop()
        deadline = time.monotonic() + STOP_S
        ended = [loop.join(deadline - time.monotonic()) for loop in loops]
        if all(ended):
            for word in self._last_words:
                self._say(word)
        self._voice.close()
        self.reservations.close()
        self.ledger.close()
        logger.info("drawbridge bridge %s stopped", self.nodename, extra={"action": "stop"})

    def nudged(self, duty: str) -> None:
        """Do one pass of a duty because beat asked for it, and note that beat lives."""
        try:
            now_ms = to_ms(self.clock.now())
            self.reservations.client.set(BEAT, now_ms, px=BEAT_MS)
        except redis.RedisError as error:
            logger.debug("not noted: %s", error, extra={"action": "beat"})
        self.work(duty)

    def work(self, duty: str) -> None:
        """Do one pass of a maintenance duty in the calling thread."""
        passes: Mapping[str, Callable[[], Any]] = {
            "expire_leases": self.upkeep.expire,
            "release_due_retries": self.upkeep.promote,
            "relay_outbox": self._relay_late,
            "reconcile": self.upkeep.reconcile,
            "prune": self._prune,
        }
        passes[duty]()

    def _make_drains(self) -> list[Loop]:
        if not self.by_drain:
            return []
        self.drains = [
            Drain(
                self.app, self.queue, self.decoder(name), revokes=self.revokes,
                ahead=self.read_ahead(name), overflow=maintenance.QUEUE,
            )
            for name in self.settings.bridge.queues
        ]  # fmt: skip
        self._last_words = [drain.close for drain in self.drains]
        named = dict(zip(self.settings.bridge.queues, self.drains, strict=True))
        self.purges.still.update((name, drain.still) for name, drain in named.items())
        return [Loop(f"drain {name}", drain.step) for name, drain in named.items()]

    def _make_loops(self) -> list[Loop]:
        relay = self._new_relay(Announcer(self.app))
        relaying = Loop("relay", relay.step)
        told = self.settings.bridge
        strangers = Strangers(self.app, queues=told.queues, suffix=told.node_suffix)
        self._last_words += [self.fleet.leave, self._mailbox.close]
        return [
            every(LOOK_S, "fleet", self.fleet.step),
            every(0.0, "mailbox", self._mailbox.listen),
            every(REVOKE_S, "revokes", self.revokes.step),
            every(REVOKE_S, "purges", self.purges.step),
            every(PROGRESS_S, "progress", self._tell_progress),
            every(STRANGERS_S, "strangers", strangers.look),
            *(self._duty(name) for name in ("expire_leases", "release_due_retries")),
            *(self._duty(name) for name in ("reconcile", "prune")),
            relaying,
            self._listen(relaying),
            self._watch(relay),
        ]

    def _listen(self, relaying: Loop) -> Loop:
        """Wake the relay when a job ends; it looks by itself when that goes unheard."""
        endings = self.reservations.endings()

        def step() -> float:
            nonlocal endings
            try:
                if next(endings):
                    relaying.wake()
            except ReservationsUnavailable:
                endings = self.reservations.endings()
                raise
            return 0.0

        return Loop("endings", step)

    def _watch(self, relay: Relay) -> Loop:
        warn_s = self.settings.bridge.outbox_warn_s
        watch = OutboxWatch(relay.behind_s, warn_s=warn_s, monotonic=time.monotonic)
        return every(WATCH_S, "outbox", watch.look)

    def _duty(self, name: str) -> Loop:
        return every(maintenance.EVERY_S[name], name, partial(self.work, name))

    def _tell_progress(self) -> None:
        tell_progress(self.ledger, self.reservations, self.queue.index.queues(), self.clock)

    def _new_relay(self, announcer: Announcer) -> Relay:
        def node_of(worker_id: str | None) -> str:
            return self.nodename if worker_id is None else self.fleet.name(worker_id)

        settler = Settler(self.app, announcer, node_of=node_of)
        owner = f"{self._token}-{secrets.token_hex(4)}"
        return Relay(self.ledger, settler, announcer, clock=self.clock, owner=owner)

    def _relay_late(self) -> None:
        """Relay in the calling thread, when the loop that should is behind or gone."""
        announcer = Announcer(self.app)
        relay = self._new_relay(announcer)
        try:
            for _ in range(NUDGE_TAKES):
                if relay.behind_s() < LATE_S or relay.step():
                    return
        finally:
            announcer.close()

    def _prune(self) -> None:
        self.upkeep.prune(files=self.files)

    def _declare(self) -> None:
        if not (self.by_drain and self.settings.bridge.declare_queues):
            return  # a feed declares what it consumes
        with self.app.connection_for_write() as connection:
            for name in self.settings.bridge.queues:
                self.app.amqp.queues[name](connection.default_channel).declare()

    def _say(self, word: Callable[[], None]) -> None:
        try:
            word()
        except Exception:  # whoever takes over finds out by the leases
            logger.warning("not said at the end", exc_info=True, extra={"action": "stop"})
