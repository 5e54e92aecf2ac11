"""The whole system in one process: queue services, bridge, broker, Celery, and what they heard."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import fakeredis
import redis
import sqlalchemy as sa

from broker import errors
from broker.bridge import inbox as inboxes
from broker.bridge.fetch import Drain, ReadAhead
from broker.bridge.relay import Relay
from broker.bridge.revokes import Revokes
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.upkeep import Upkeep
from tests.simulation.oracle import Oracle
from tests.simulation.scheduler import Faults, Killed, Schedule
from tests.simulation.stores import SteppedLedger, VirtualClock, emptied, stepped_redis

NONE: Final = Faults()
QUEUE: Final = "remote"
ENVELOPE: Final = {"headers": {}, "embed": {"callbacks": [{"task": "next"}]}}


@dataclass(frozen=True, slots=True)
class Mix:
    """One kind of trouble."""

    name: str
    faults: Faults = NONE
    #: losses of the whole reservations
    flushes: int = 0
    #: by how much the clock may jump
    jumps_s: tuple[float, ...] = (0.2, 1.0, 4.0)


class World:
    """All stores, and every process there ever was."""

    def __init__(self, seed: int, mix: Mix) -> None:
        self.mix = mix
        self.schedule = Schedule(seed, mix.faults)
        self.random = self.schedule.random
        self.clock = VirtualClock()
        self.engine: sa.Engine = emptied()
        self._connection = self.engine.raw_connection()
        self.redis = fakeredis.FakeServer()
        self.broker = fakeredis.FakeServer()
        self.admin = fakeredis.FakeRedis(server=self.redis, decode_responses=True)
        self.messages = fakeredis.FakeRedis(server=self.broker)
        self.oracle = Oracle(self._connection.driver_connection)
        #: every lease a worker was given: job, worker, lease id
        self.leases: list[tuple[str, str, str]] = []
        #: workers that have not gone home
        self.working = 0
        self._numbers = 0

    def close(self) -> None:
        """Drop everything."""
        self._connection.close()

    def process(self) -> JobQueue:
        """Start a process; it knows nothing yet."""
        client = stepped_redis(self.redis, self.schedule, "redis")
        store = Reservations(client, shebang=False, now_ms=self.clock.now_ms)
        client.scripts = {one.sha: name for name, one in store._scripts._scripts.items()}
        ledger = SteppedLedger(self.engine, self.schedule)
        queue = JobQueue(ledger, store, clock=self.clock, settings=QueueSettings())
        # else the real clock decides which claim sweeps
        queue._claims._may_sweep = lambda: True  # type: ignore[method-assign]
        return queue

    # -- what comes from outside -------------------------------------------------------------

    def number(self) -> int:
        """Return a number nobody had before."""
        self._numbers += 1
        return self._numbers

    def new(self) -> NewJob:
        """Make up a job; its id is of the seed."""
        kind = self.random.randrange(8)
        return NewJob(
            task_id=f"00000000-0000-4000-8000-{self.number():012x}", queue=QUEUE,
            type="ab"[kind % 2], priority=kind % 3, max_attempts=1 + kind % 3,
            not_before=self.clock.now() + timedelta(seconds=5) if kind == 5 else None,
            envelope=ENVELOPE if kind > 3 else None,
        )  # fmt: skip

    def publish(self) -> None:
        """Send a task through the broker, now and then twice."""
        new = self.new()
        fields = ("task_id", "type", "priority", "max_attempts", "envelope")
        raw = json.dumps({name: getattr(new, name) for name in fields})
        for _ in range(1 + (self.random.randrange(6) == 0)):
            self.messages.lpush(QUEUE, raw)
        self.oracle.published.append(new.task_id)

    # -- the bridge --------------------------------------------------------------------------

    def drain(self) -> Drain:
        """Start what ingests; its inbox is of this process alone."""
        queue = self.process()
        decoder: Any = SimpleNamespace(
            queue=QUEUE, redis=lambda raw, _: NewJob(queue=QUEUE, **json.loads(raw))
        )
        drain = Drain(
            SimpleNamespace(),  # type: ignore[arg-type]
            queue, decoder, revokes=Revokes(queue), ahead=ReadAhead(queue, QUEUE, mark=1000),
            overflow="celery",
        )  # fmt: skip
        client = stepped_redis(self.broker, self.schedule, "broker", decode=False)
        channel = SimpleNamespace(
            global_keyprefix="", priority_steps=[0], _q_for_pri=lambda queue, _: queue
        )
        with patch.object(inboxes, "client_of", lambda _: client):
            inbox = inboxes.Inbox(channel, QUEUE, token=f"bridge{self.number()}", overflow="celery")
        # to wait in earnest is for tests with a clock in earnest
        inbox.wait = lambda _: None  # type: ignore[method-assign]
        names = {"fetch": inbox._fetch, "settle": inbox._settle, "give_back": inbox._give_back}
        client.scripts = {script.sha: name for name, script in names.items()}
        drain._inbox = inbox
        drain._connection = SimpleNamespace(default_channel=None, release=lambda: None)
        drain._drop = lambda: None  # type: ignore[method-assign]
        return drain

    def relay(self) -> Relay:
        """Start what tells Celery; Celery is a list."""

        def settle(effect: Any, job: Any, _envelope: Any) -> None:
            self.schedule.step(f"celery.{effect.kind}", "before", ConnectionError)
            self.oracle.hear(effect.seq, job.id, effect.kind, dict(effect.data))
            self.schedule.step(f"celery.{effect.kind}", "after", ConnectionError)

        return Relay(
            SteppedLedger(self.engine, self.schedule),
            SimpleNamespace(settle=settle),  # type: ignore[arg-type]
            SimpleNamespace(flush=lambda: None),  # type: ignore[arg-type]
            clock=self.clock, owner=f"relay{self.number()}",
        )  # fmt: skip

    # -- after the run -----------------------------------------------------------------------

    def heal(self) -> int:
        """Let everything work again until nothing is left to do; returns after how many rounds."""
        self.clock.advance(61)
        queue, drain, relay = self.process(), self.drain(), self.relay()
        upkeep = Upkeep(queue)
        for passed in range(60):
            drain._rescued_at = float("-inf")
            drain.step()
            for sweep in (upkeep.expire, upkeep.promote, upkeep.reconcile):
                sweep()
            self._work_off(queue)
            while relay.step() == 0.0:
                pass
            if not self.messages.llen(QUEUE) and self.oracle.at_rest():
                return passed
            self.clock.advance(16)
        return 60

    def _work_off(self, queue: JobQueue) -> None:
        request = ClaimRequest(worker_id="last", policy=Policy(), lease_seconds=60, max_jobs=20)
        while granted := queue.claim(request):
            for job in granted:
                queue.complete(job.id, Holder(worker_id="last", lease_id=job.lease_id), result="x")

    def attempt(self, call: Callable[[], Any]) -> tuple[str, Any]:
        """Make a call; says ok, refused, unavailable (no answer) or killed, and the answer."""
        try:
            return "ok", call()
        except Killed:
            return "killed", None
        except errors.Unavailable as error:
            return "unavailable", error
        except errors.DrawbridgeError as error:
            return "refused", error

    def bear(self, step: Callable[[], Any]) -> None:
        """Run one pass of a loop, which outlives stores that are away."""
        with suppress(errors.Unavailable, redis.RedisError):
            step()
