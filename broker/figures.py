"""What the queue counts: the only one to know these names and labels, and how they are read out.

Edges and bridges count what they do themselves; a sum over all of them is the whole. A transition
is counted where it is decided, a moment before its commit, so an outage just then counts it twice.
Job types are the senders' own words: beyond ``PAIRS_MAX`` pairs of queue and type a new one is
counted as ``other``, or a stranger could fill the memory of whoever counts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
    start_http_server,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MutexValue, ValueClass

from broker.errors import ConfigurationError

#: what ``text`` returns
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
PAIRS_MAX: Final = 500
OTHER: Final = "other"

TRANSITIONS: Final = Counter(
    "drawbridge_transitions", "Transitions of jobs.", ["queue", "type", "trigger"]
)
INGESTED: Final = Counter(
    "drawbridge_ingested", "Messages taken from the Celery broker.", ["queue", "outcome"]
)
EFFECTS: Final = Counter(
    "drawbridge_effects", "Effects told to Celery, or given up.", ["kind", "outcome"]
)
LOG_CUT: Final = Counter(
    "drawbridge_log_cut", "What workers wrote into logs beyond the limits.", ["what"]
)
ORDINARY: Final = Gauge(
    "drawbridge_ordinary_workers", "Ordinary workers that consume a bridged queue.", ["queue"],
    multiprocess_mode="max",
)  # fmt: skip


class Pairs:
    """The pairs of queue and type met so far, no more than ``most`` of them."""

    def __init__(self, most: int = PAIRS_MAX) -> None:
        self._most = most
        self._met: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def __call__(self, queue: str, type_: str) -> tuple[str, str]:
        """Return the labels of a pair."""
        pair = (queue, type_)
        if pair not in self._met:
            with self._lock:
                if len(self._met) >= self._most:
                    return OTHER, OTHER
                self._met.add(pair)
        return pair


_PAIRS: Final = Pairs()


def moved(queue: str, type_: str, trigger: str) -> None:
    """Count a transition of a job."""
    TRANSITIONS.labels(*_PAIRS(queue, type_), trigger).inc()


def ingested(outcomes: Iterable[tuple[str, str]]) -> None:
    """Count messages, each by its queue and what became of it."""
    for queue, outcome in outcomes:
        INGESTED.labels(queue, outcome).inc()


def told(kinds: Iterable[str]) -> None:
    """Count effects that Celery was told."""
    for kind in kinds:
        EFFECTS.labels(kind, "told").inc()


def parked(kind: str) -> None:
    """Count an effect that was given up."""
    EFFECTS.labels(kind, "parked").inc()


def log_cut(what: str, count: int = 1) -> None:
    """Count what was cut off a log."""
    LOG_CUT.labels(what).inc(count)


def ordinary_workers(queue: str, count: int) -> None:
    """Tell how many ordinary workers were just seen to consume a bridged queue."""
    ORDINARY.labels(queue).set(count)


def registry() -> CollectorRegistry:
    """Return all figures.

    Where several processes serve as one, prometheus_client's PROMETHEUS_MULTIPROC_DIR names the
    folder they share, and each of them tells the sum.
    """
    if ValueClass is MutexValue:
        return REGISTRY
    whole = CollectorRegistry()
    MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
    return whole


def ended(pid: int) -> None:
    """Count no more what was going on in a process of several that has ended."""
    if ValueClass is not MutexValue:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def text() -> bytes:
    """Write all figures for Prometheus."""
    return generate_latest(registry())


def serve(host: str, port: int) -> int:
    """Serve the figures to whoever reaches ``host``, from a thread; returns the port.

    Raises:
        ConfigurationError: the port cannot be listened on.
    """
    try:
        server, _ = start_http_server(port, host, registry=registry())
    except OSError as error:
        raise ConfigurationError(f"Figures cannot be served on {host}:{port}: {error}") from error
    return int(server.server_port)
