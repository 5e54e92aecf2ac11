"""Calls that wait: the only one to know who waits for what, and who is woken for it.

One thread a process listens for wake-ups, one event a waiter. A wake-up for n jobs wakes the n
oldest waiters that may run them and are not awake yet: waking all cost 128 claims a job at 200
waiters, against 3. Whoever leaves without having used a wake-up hands it on, so that none is lost
between two waiters; what Redis drops, a look every few seconds finds, of one for all its equals.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol, TypeVar

from cachetools import LRUCache, TTLCache

from broker.errors import DrawbridgeError, GenerationMoved, Unavailable
from broker.policy import Eligibility, Lane
from broker.records import ClaimRequest, Job
from edge_api import figures
from edge_api.order_waits import OrderWaits

logger = logging.getLogger(__name__)

#: how often every waiter looks by itself, give or take JITTER
LOOK_EVERY_S: Final = 5.0
#: more looks than this a second and process are spread out: a thousand waiters at 5 s would keep a
#: core busy with finding nothing
LOOKS_PER_S: Final = 50
JITTER: Final = (0.8, 1.2)
#: share of that time for which one waiter's look in vain serves all who see the same
SHARED: Final = 0.5
#: how often a reader of a job's log looks for more
POLL_EVERY_S: Final = 0.5
#: how long the listener leaves Redis alone after a failure
RELISTEN_S: Final = 1.0
#: how long a daemon that said goodbye is remembered
GONE_S: Final = 70.0
#: waiters without a free place that may hand one wake-up on
HOPS_MAX: Final = 3
#: claims that are tried at the same time: a fleet that comes back all at once would otherwise share
#: the processor until the stores seem not to answer, and leave none of it to heartbeats
TRIES: Final = 16

T = TypeVar("T")


class Claims(Protocol):
    """What a waiter asks of the queue."""

    def claim(self, request: ClaimRequest, /) -> list[Job]:
        """Try once."""

    def eligibility(self, request: ClaimRequest, /) -> Eligibility:
        """Say which lanes it may see."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Word that there may be a job in a lane; ``lane`` is None when it is not known."""

    lane: Lane | None
    hops: int = 0


class Crowded(Unavailable):
    """Too many calls wait here already; ask again."""


@dataclass(slots=True, eq=False)
class _Waiter:
    request: ClaimRequest
    eligible: Eligibility
    event: threading.Event = field(default_factory=threading.Event)
    wake: Wake | None = None
    #: its worker said goodbye and there is nobody to answer, or it has orders to read first
    ended: bool = False


class Waiting:
    """The waiting calls of one process; start is by itself, stop ends them all at once."""

    def __init__(
        self,
        queue: Claims,
        *,
        wakes: Callable[[], Iterator[tuple[str, str, int] | str | None]],
        lane: Callable[[str, str], Lane | None],
        seen: Callable[[str], object],
        capacity: int,
        learn: Callable[[str], object] = lambda _worker: None,
        drains: Callable[[str], bool] = lambda _worker: False,
        look_every_s: float = LOOK_EVERY_S,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait for ``queue``; ``wakes`` yields (queue, lane key, n), and None now and then.

        A worker's id among the wake-ups says that it has new orders to ``learn`` of; who
        ``drains`` gets no job.
        """
        self._queue = queue
        self._wakes = wakes
        self._lane = lane
        self._seen = seen
        self._capacity = capacity
        self._learn = learn
        self._drains = drains
        self._look_every_s = look_every_s
        self._lock = threading.Lock()
        self._tickets = count()
        #: oldest first; a waiter keeps its place until it leaves
        self._waiters: dict[int, _Waiter] = {}
        self._pollers = 0
        #: (worker, instance) of daemons that said goodbye: what they asked before may come late
        self._gone: TTLCache[tuple[str, str], bool] = TTLCache(10_000, ttl=GONE_S)
        self._timer = timer
        #: when somebody who sees as much last looked in vain
        self._vain: LRUCache[Eligibility, float] = LRUCache(10_000)
        self._stopped = threading.Event()
        self._tries = threading.BoundedSemaphore(TRIES)
        self.orders = OrderWaits(self._place, stopped=self._stopped, seen=seen)
        self._listener: threading.Thread | None = None

    def __len__(self) -> int:
        """Count the calls that wait."""
        return len(self._waiters) + self._pollers

    def stop(self) -> None:
        """End every wait, now and from now on; may be called twice, and from a signal handler."""
        self._stopped.set()
        for waiter in list(self._waiters.values()):
            waiter.event.set()
        self.orders.wake_all()

    def join(self) -> None:
        """Stop, and see the listener out."""
        self.stop()
        if self._listener is not None:
            self._listener.join(timeout=2 * RELISTEN_S)

    def bye(self, worker_id: str, instance_id: str) -> None:
        """End the waits of a daemon that stops, and give it nothing any more; may come twice.

        Its open claim would be granted to nobody, and the job wait for the hold to lapse. Other
        edges do not hear of it; there the hold does lapse.
        """
        with self._lock:
            self._gone[worker_id, instance_id] = True
            for waiter in self._waiters.values():
                if (waiter.request.worker_id, waiter.request.instance_id) == (
                    worker_id, instance_id,
                ):  # fmt: skip
                    waiter.ended = True
                    waiter.event.set()

    def _has_gone(self, request: ClaimRequest) -> bool:
        with self._lock:
            return (request.worker_id, request.instance_id) in self._gone

    def claim(
        self,
        request: ClaimRequest,
        *,
        wait_s: float,
        left: Callable[[], bool] = lambda: False,
        renewed: Callable[[], ClaimRequest] | None = None,
    ) -> list[Job]:
        """Claim, and while there is nothing wait up to ``wait_s`` for it.

        ``left`` tells whether the caller has gone: nothing is claimed for nobody, and its place
        is another's. ``renewed`` says before every further look what the claim is by then, or
        refuses it: a credential may be revoked or restricted while its worker waits.

        Raises:
            Crowded: there is nothing, and no place to wait for it.
        """
        try:
            jobs = self._claim(request, wait_s, left, renewed)
        except Crowded:
            figures.crowded()
            raise
        figures.claimed(len(jobs))
        return jobs

    def _claim(
        self,
        request: ClaimRequest,
        wait_s: float,
        left: Callable[[], bool],
        renewed: Callable[[], ClaimRequest] | None,
    ) -> list[Job]:
        if self._has_gone(request):
            return []
        jobs = self._try(request)
        if jobs or wait_s <= 0:
            return jobs
        waiter = _Waiter(request, self._queue.eligibility(request))
        ticket = self._park(waiter)
        try:
            jobs = self._wait(ticket, waiter, time.monotonic() + wait_s, left, renewed)
        finally:
            self._leave(ticket, waiter)
        if not (jobs or self._stopped.is_set()):
            # the answer names the cursor of its orders, which a long wait has forgotten
            self._seen(request.worker_id)
        return jobs

    def _try(self, request: ClaimRequest) -> list[Job]:
        if self._drains(request.worker_id):
            return []
        with self._tries:
            return self._queue.claim(request)

    def _look(self, waiter: _Waiter, *, woken: bool) -> list[Job]:
        """Try, unless it was not woken and somebody who sees the same has just looked in vain.

        A thousand who look by themselves would keep the processor from the one who was woken.
        """
        now = self._timer()
        with self._lock:
            looked = self._vain.get(waiter.eligible)
        if not woken and looked is not None and now - looked < SHARED * self._look_every_s:
            return []
        jobs = self._try(waiter.request)
        # one without a free place, or one that drains, has not looked for others
        alone = waiter.request.policy.max_concurrency is not None
        if not (jobs or alone or self._drains(waiter.request.worker_id)):
            with self._lock:
                self._vain[waiter.eligible] = now
        return jobs

    def poll(self, look: Callable[[], list[T]], *, wait_s: float) -> list[T]:
        """Look, and while there is nothing look again for up to ``wait_s``.

        Raises:
            Crowded: there is nothing, and no place to wait for it.
        """
        until = time.monotonic() + wait_s
        if (found := look()) or wait_s <= 0:
            return found
        with self._place():
            while not found and (left := until - time.monotonic()) > 0:
                if self._stopped.wait(min(left, POLL_EVERY_S)):
                    break
                found = look()
            return found

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Take a place among those who wait."""
        with self._lock:
            self._may_wait()
            self._pollers += 1
            figures.WAITING.inc()
        try:
            yield
        finally:
            with self._lock:
                self._pollers -= 1
                figures.WAITING.dec()

    def _may_wait(self) -> None:
        """Refuse whoever finds no place, and see that somebody listens; the lock is held."""
        if len(self) >= self._capacity:
            raise Crowded
        if self._listener is None and not self._stopped.is_set():
            self._listener = threading.Thread(target=self._listen, name="edge-wakes", daemon=True)
            self._listener.start()

    def _park(self, waiter: _Waiter) -> int:
        with self._lock:
            self._may_wait()
            ticket = next(self._tickets)
            self._waiters[ticket] = waiter
            figures.WAITING.inc()
            return ticket

    def _wait(
        self,
        ticket: int,
        waiter: _Waiter,
        until: float,
        left: Callable[[], bool],
        renewed: Callable[[], ClaimRequest] | None,
    ) -> list[Job]:
        wake, woken = None, True
        # The first look closes the gap between the try before and the place in the line.
        # Stop sets the flag first and looks who waits after: whoever it misses sees the flag.
        while not (self._stopped.is_set() or waiter.ended):
            if left():
                waiter.wake = wake
                break
            if renewed is not None:
                try:
                    self._judge(waiter, renewed())
                except DrawbridgeError:
                    waiter.wake = wake
                    raise
            every = max(self._look_every_s, len(self._waiters) / LOOKS_PER_S)
            try:
                if jobs := self._look(waiter, woken=woken or time.monotonic() >= until):
                    return jobs
            except GenerationMoved:
                every = RELISTEN_S  # rebuilt by whoever came first; a waiter can wait for that
            if wake is not None and waiter.request.policy.max_concurrency is not None:
                self._hand_on(ticket, wake)
            rest = until - time.monotonic()
            if rest <= 0:
                break
            self._seen(waiter.request.worker_id)
            waiter.event.wait(min(rest, every * random.uniform(*JITTER)))  # noqa: S311
            with self._lock:
                wake, waiter.wake = waiter.wake, None
                woken = wake is not None
                waiter.event.clear()
        return []

    def _judge(self, waiter: _Waiter, request: ClaimRequest) -> None:
        """Let a waiter go on with what its claim may be given now."""
        if request != waiter.request:
            eligible = self._queue.eligibility(request)
            with self._lock:
                waiter.request, waiter.eligible = request, eligible

    def _leave(self, ticket: int, waiter: _Waiter) -> None:
        with self._lock:
            del self._waiters[ticket]
            figures.WAITING.dec()
            if waiter.wake is not None:
                self._rouse(waiter.wake, 1)

    def _hand_on(self, ticket: int, wake: Wake) -> None:
        """Offer a wake-up to the next, in case the one who had it has no free place."""
        if wake.hops < HOPS_MAX:
            with self._lock:
                self._rouse(Wake(wake.lane, wake.hops + 1), 1, behind=ticket)

    def _rouse(self, wake: Wake, n: int, *, behind: int = -1) -> None:
        """Wake the n oldest who may run it and sleep; the lock is held."""
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

    def _order(self, worker_id: str) -> None:
        """Wake all calls of a worker: a claim ends with nothing, so that the orders are read."""
        self._learn(worker_id)
        self.orders.wake(worker_id)
        with self._lock:
            for waiter in self._waiters.values():
                if waiter.request.worker_id == worker_id:
                    waiter.ended = True
                    waiter.event.set()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                for message in self._wakes():
                    if self._stopped.is_set():
                        return
                    if isinstance(message, str):
                        self._order(message)
                    elif message is not None:
                        figures.WAKES.inc()
                        queue, key, n = message
                        wake = Wake(self._lane(queue, key))
                        with self._lock:
                            self._rouse(wake, n)
            except Unavailable:
                pass  # its own log says so; meanwhile every waiter looks by itself
            except Exception:
                logger.exception("wake-ups failed", extra={"action": "listen"})
            self._stopped.wait(RELISTEN_S)
