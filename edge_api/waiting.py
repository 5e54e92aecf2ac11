"""Calls that wait: what each does while it waits, and when it looks.

One thread a process listens for wake-ups and tells the line (``line.py``), which knows who is woken
for what. What Redis drops, a look every few seconds finds, of one for all its equals.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from cachetools import LRUCache, TTLCache

from broker.errors import DrawbridgeError, GenerationMoved, Unavailable
from broker.policy import Eligibility, Lane
from broker.records import ClaimRequest, Job
from edge_api import figures
from edge_api.line import Crowded, Line, Waiter, Wake
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
        self._learn = learn
        self._drains = drains
        self._look_every_s = look_every_s
        self._line = Line(capacity=capacity, drains=drains)
        #: of what follows, and of who begins to listen
        self._lock = threading.Lock()
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
        return len(self._line)

    def stop(self) -> None:
        """End every wait, now and from now on; may be called twice, and from a signal handler."""
        self._stopped.set()
        for waiter in self._line.waiters:
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
        who = (worker_id, instance_id)
        with self._lock:
            self._gone[who] = True
        self._line.end(lambda asked: (asked.worker_id, asked.instance_id) == who)

    def has_gone(self, worker_id: str, instance_id: str | None) -> bool:
        """Tell whether a daemon said goodbye here a moment ago."""
        with self._lock:
            return (worker_id, instance_id) in self._gone

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
        if self.has_gone(request.worker_id, request.instance_id):
            return []
        jobs = self._try(request)
        if jobs or wait_s <= 0:
            return jobs
        waiter = Waiter(request, self._queue.eligibility(request))
        self._hear()
        with self._line.standing(waiter):
            jobs = self._wait(waiter, time.monotonic() + wait_s, left, renewed)
        gone = self.has_gone(request.worker_id, request.instance_id)
        if not (jobs or gone or self._stopped.is_set() or left()):
            # the answer names the cursor of its orders, which a long wait has forgotten
            self._seen(request.worker_id)
        return jobs

    def _try(self, request: ClaimRequest) -> list[Job]:
        if self._drains(request.worker_id):
            return []
        with self._tries:
            return self._queue.claim(request)

    def _look(self, waiter: Waiter, *, woken: bool) -> list[Job]:
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
        self._hear()
        with self._line.place():
            yield

    def _hear(self) -> None:
        """See that somebody listens."""
        with self._lock:
            if self._listener is None and not self._stopped.is_set():
                listen = threading.Thread(target=self._listen, name="edge-wakes", daemon=True)
                self._listener = listen
                listen.start()

    def _wait(
        self,
        waiter: Waiter,
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
            every = max(self._look_every_s, len(self._line) / LOOKS_PER_S)
            try:
                if jobs := self._look(waiter, woken=woken or time.monotonic() >= until):
                    return jobs
            except GenerationMoved:
                every = RELISTEN_S  # rebuilt by whoever came first; a waiter can wait for that
            if wake is not None and waiter.request.policy.max_concurrency is not None:
                self._line.hand_on(waiter, wake)
            rest = until - time.monotonic()
            if rest <= 0:
                break
            self._seen(waiter.request.worker_id)
            waiter.event.wait(min(rest, every * random.uniform(*JITTER)))  # noqa: S311
            wake = self._line.taken(waiter)
            woken = wake is not None
        return []

    def _judge(self, waiter: Waiter, request: ClaimRequest) -> None:
        """Let a waiter go on with what its claim may be given now."""
        if request != waiter.request:
            self._line.change(waiter, request, self._queue.eligibility(request))

    def _order(self, worker_id: str) -> None:
        """Wake all calls of a worker: a claim ends with nothing, so that the orders are read."""
        self._learn(worker_id)
        self.orders.wake(worker_id)
        self._line.end(lambda asked: asked.worker_id == worker_id)

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
                        self._line.rouse(Wake(self._lane(queue, key)), n)
            except Unavailable:
                pass  # its own log says so; meanwhile every waiter looks by itself
            except Exception:
                logger.exception("wake-ups failed", extra={"action": "listen"})
            self._stopped.wait(RELISTEN_S)
