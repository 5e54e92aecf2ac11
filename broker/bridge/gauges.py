"""What a bridge is asked for at the moment of asking: how much waits, how long, and who lives.

The ledger is read when somebody asks, and no more than a twentieth of the time: the answer of a
long read is kept for long. Every bridge tells the same, so take the maximum and not the sum.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.bridge.loops import Loop
from broker.clock import Clock, to_ms
from broker.errors import Unavailable
from broker.figures import Pairs
from broker.ledger import fleet, outbox
from broker.ledger.engine import Ledger
from broker.reservations.keys import BEAT, OFFLINE_MS, ONLINE
from broker.reservations.store import Reservations
from broker.states import Status

logger = logging.getLogger(__name__)

#: an answer is kept for as long, and for so many times what it took
KEPT_S: Final = 5.0
KEPT_TIMES: Final = 20.0
#: between two warnings of the same
AGAIN_S: Final = 60.0
NEVER: Final = float("inf")
_BY_PAIR: Final = ("queue", "type")
#: the jobs that are counted; the others, that ended well enough, only grow in number
_BY_STATUS: Final = {
    Status.QUEUED: ("drawbridge_queued_jobs", "Jobs that wait."),
    Status.RUNNING: ("drawbridge_running_jobs", "Jobs that workers hold."),
    Status.DEAD_LETTER: ("drawbridge_dead_letter_jobs", "Dead letters kept."),
}


class Gauges(Collector):
    """Reads the stores for Prometheus; a store that is away is told as such, and nothing of it."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        *,
        clock: Clock,
        loops: Callable[[], Sequence[Loop]],
    ) -> None:
        """Tell of these stores and of the loops that run just now."""
        self._ledger = ledger
        self._client: Any = reservations.client
        self._clock = clock
        self._loops = loops
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_until = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Name no figure before somebody asks: registering must reach no store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Tell all there is."""
        with self._lock:
            began = time.monotonic()
            if began >= self._kept_until:
                self._kept = list(self._stores())
                took = time.monotonic() - began
                self._kept_until = began + took + max(KEPT_S, KEPT_TIMES * took)
            yield from self._kept
        yield from self._threads()

    def _stores(self) -> Iterator[Metric]:
        now = self._clock.now()
        reached = GaugeMetricFamily(
            "drawbridge_store_reachable", "Whether a store answers.", labels=["store"]
        )
        for store, read in (("ledger", self._from_ledger), ("reservations", self._from_redis)):
            try:
                found = list(read(now))
            except (Unavailable, redis.RedisError) as error:
                logger.debug("not told: %s", error, extra={"action": "metrics"})
                found = []
            reached.add_metric([store], float(bool(found)))
            yield from found
        yield reached

    def _from_ledger(self, now: datetime) -> Iterator[Metric]:
        with self._ledger.read() as conn:
            loads, rows = fleet.load(conn, tuple(_BY_STATUS)), outbox.waiting(conn)
            oldest, parked = outbox.oldest(conn), outbox.parked(conn).rows
        yield from _loads(loads, now)
        waits_s = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
        yield _one("drawbridge_outbox_rows", "Effects that Celery was not told yet.", rows)
        yield _one("drawbridge_outbox_oldest_seconds", "For how long the oldest waits.", waits_s)
        yield _one("drawbridge_outbox_parked", "Effects given up and not tried again.", parked)

    def _from_redis(self, now: datetime) -> Iterator[Metric]:
        now_ms = to_ms(now)
        online = self._client.zcount(ONLINE, now_ms - OFFLINE_MS, "+inf")
        beat = self._client.get(BEAT)
        age_s = NEVER if beat is None else max(0.0, (now_ms - float(beat)) / 1000)
        yield _one(
            "drawbridge_workers_online",
            "Remote workers seen within a minute that have not said goodbye.",
            online,
        )
        yield _one("drawbridge_beat_age_seconds", "Since beat's last nudge; +Inf: lost.", age_s)

    def _threads(self) -> Iterator[Metric]:
        idle = GaugeMetricFamily(
            "drawbridge_loop_age_seconds", "Since a loop's last good pass.", labels=["loop"]
        )
        failures = CounterMetricFamily(
            "drawbridge_loop_failures", "Passes of a loop that failed.", labels=["loop"]
        )
        now = time.monotonic()
        for loop in self._loops():
            idle.add_metric([loop.name], max(0.0, now - loop.passed_at))
            failures.add_metric([loop.name], loop.failures)
        yield idle
        yield failures


class OutboxWatch:
    """Warns while Celery has not been told something for too long."""

    def __init__(
        self, behind_s: Callable[[], float], *, warn_s: float, monotonic: Callable[[], float]
    ) -> None:
        """Warn when ``behind_s`` gives more than ``warn_s``, once a minute."""
        self._behind_s = behind_s
        self._warn_s = warn_s
        self._monotonic = monotonic
        self._warned_at: float | None = None

    def look(self) -> None:
        """Look once.

        Raises:
            Unavailable: the ledger is away.
        """
        behind_s, now = self._behind_s(), self._monotonic()
        if behind_s <= self._warn_s:
            if self._warned_at is not None:
                logger.info("Celery is told again in time", extra={"action": "outbox"})
            self._warned_at = None
            return
        if self._warned_at is None or now - self._warned_at >= AGAIN_S:
            self._warned_at = now
            logger.warning(
                "the oldest effect has waited %.0f s to be told to Celery", behind_s,
                extra={"action": "outbox", "seconds": round(behind_s)},
            )  # fmt: skip


def _loads(loads: Sequence[fleet.Load], now: datetime) -> Iterator[Metric]:
    pairs = Pairs()
    counted: dict[tuple[Status, str, str], int] = {}
    ages: dict[tuple[str, str], float] = {}
    for one in loads:
        pair = pairs(one.queue, one.type)
        counted[one.status, *pair] = counted.get((one.status, *pair), 0) + one.jobs
        if one.status is Status.QUEUED:
            age_s = max(0.0, (now - one.oldest).total_seconds())
            ages[pair] = max(age_s, ages.get(pair, 0.0))
    for status, (name, said) in _BY_STATUS.items():
        family = GaugeMetricFamily(name, said, labels=_BY_PAIR)
        for (other, queue, type_), number in counted.items():
            if other is status:
                family.add_metric([queue, type_], number)
        yield family
    oldest = GaugeMetricFamily(
        "drawbridge_queued_oldest_seconds", "Age of the oldest job that waits.", labels=_BY_PAIR
    )
    for (queue, type_), age_s in ages.items():
        oldest.add_metric([queue, type_], age_s)
    yield oldest


def _one(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)
