"""The line of those who wait: who has a place, and who of those that wait for jobs is woken.

One event a waiter. A wake-up for n jobs wakes the n oldest waiters that may run them and are not
awake yet: waking all cost 128 claims a job at 200 waiters, against 3. Whoever leaves without having
used a wake-up hands it on, so that none is lost between two waiters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from broker.errors import Unavailable
from broker.policy import Eligibility, Lane
from broker.records import ClaimRequest
from edge_api import figures

#: waiters without a free place that may hand one wake-up on
HOPS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Wake:
    """Word that there may be a job in a lane; ``lane`` is None when it is not known."""

    lane: Lane | None
    hops: int = 0


class Crowded(Unavailable):
    """Too many calls wait here already; ask again."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A claim that waits; what it is woken for lies in ``wake`` until it takes it."""

    request: ClaimRequest
    eligible: Eligibility
    event: threading.Event = field(default_factory=threading.Event)
    wake: Wake | None = None
    #: its worker said goodbye and there is nobody to answer, or it has orders to read first
    ended: bool = False
    #: its place among the claims, the oldest first
    ticket: int = -1


class Line:
    """All calls of one process that wait; threads share it."""

    def __init__(self, *, capacity: int, drains: Callable[[str], bool]) -> None:
        """Have places for ``capacity`` calls; a worker who ``drains`` is woken for no job."""
        self._capacity = capacity
        self._drains = drains
        self._lock = threading.Lock()
        self._tickets = count()
        #: oldest first; a waiter keeps its place until it leaves
        self._waiters: dict[int, Waiter] = {}
        #: calls that wait for something else than jobs
        self._others = 0

    def __len__(self) -> int:
        """Count the calls that wait."""
        return len(self._waiters) + self._others

    @property
    def waiters(self) -> list[Waiter]:
        """The claims that wait, oldest first; takes no lock, for a signal handler may ask."""
        return list(self._waiters.values())

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place to wait for something else than jobs.

        Raises:
            Crowded: there is none.
        """
        with self._lock:
            self._enter()
            self._others += 1
        try:
            yield
        finally:
            with self._lock:
                self._others -= 1
                figures.WAITING.dec()

    @contextmanager
    def standing(self, waiter: Waiter) -> Iterator[None]:
        """Stand in the line as the last; a wake-up that was not used is the next one's.

        Raises:
            Crowded: there is no place.
        """
        with self._lock:
            self._enter()
            waiter.ticket = next(self._tickets)
            self._waiters[waiter.ticket] = waiter
        try:
            yield
        finally:
            with self._lock:
                del self._waiters[waiter.ticket]
                figures.WAITING.dec()
                if waiter.wake is not None:
                    self._rouse(waiter.wake, 1)

    def _enter(self) -> None:
        """Count who comes, or refuse whoever finds no place; the lock is held."""
        if len(self) >= self._capacity:
            raise Crowded
        figures.WAITING.inc()

    def rouse(self, wake: Wake, n: int) -> None:
        """Wake the n oldest who may run it and sleep."""
        with self._lock:
            self._rouse(wake, n)

    def hand_on(self, waiter: Waiter, wake: Wake) -> None:
        """Offer a wake-up to the next, in case the one who had it has no free place."""
        if wake.hops < HOPS_MAX:
            with self._lock:
                self._rouse(Wake(wake.lane, wake.hops + 1), 1, behind=waiter.ticket)

    def _rouse(self, wake: Wake, n: int, *, behind: int = -1) -> None:
        """Wake the n oldest; the lock is held."""
        for ticket, waiter in self._waiters.items():
            if n <= 0:
                return
            if ticket <= behind or waiter.wake is not None:
                continue
            if self._drains(waiter.request.worker_id):
                continue
            if wake.lane is None or waiter.eligible.allows(wake.lane):
                waiter.wake = wake
                waiter.event.set()
                figures.WOKEN.inc()
                n -= 1

    def taken(self, waiter: Waiter) -> Wake | None:
        """Take what a waiter was woken for, if anything; from now on it may be woken again."""
        with self._lock:
            wake, waiter.wake = waiter.wake, None
            waiter.event.clear()
            return wake

    def change(self, waiter: Waiter, request: ClaimRequest, eligible: Eligibility) -> None:
        """Let a waiter go on with another claim than it came with."""
        with self._lock:
            waiter.request, waiter.eligible = request, eligible

    def end(self, which: Callable[[ClaimRequest], bool]) -> None:
        """Let the claims that are meant end with nothing."""
        with self._lock:
            for waiter in self._waiters.values():
                if which(waiter.request):
                    waiter.ended = True
                    waiter.event.set()
