"""Which jobs run here now, and whether more may come: the one lock of the daemon.

    running ──signal, --once, --idle-exit──▶ quiet ──second signal──▶ stopping

States go forward only. Quiet claims nothing and finishes what runs; stopping ends the children and
gives their jobs back. A drain order of the edge is no state: a daemon that is held claims nothing
either, but lives on, and goes on claiming when the edge lets it.
"""

import enum
import threading
from collections.abc import Callable

from remote_worker.clock import Clock, steady
from remote_worker.run import JobRun


class State(enum.IntEnum):
    """How much the daemon still does."""

    #: claims and runs
    RUNNING = 0
    #: finishes what runs
    QUIET = 1
    #: ends what runs and gives it back
    STOPPING = 2


class Slots:
    """The places for jobs and who sits in them."""

    def __init__(
        self, *, concurrency: int, max_jobs: int | None = None, clock: Clock = steady
    ) -> None:
        self._own = self._limit = concurrency
        self._max_jobs = max_jobs
        self._clock = clock
        self._changed = threading.Condition()
        self._active: set[JobRun] = set()
        self._busy_until = clock()
        self.state = State.RUNNING
        #: jobs that were ever started
        self.taken = 0
        #: the edge wants nothing claimed for now
        self.held = False

    @property
    def limit(self) -> int:
        """Return how many jobs may run at once now."""
        return self._limit

    def running(self) -> tuple[JobRun, ...]:
        """Return the jobs at hand."""
        with self._changed:
            return tuple(self._active)

    def touch(self) -> None:
        """Begin to count idleness from now."""
        with self._changed:
            self._busy_until = self._clock()

    def idle_s(self) -> float:
        """Return how long there has been nothing to do."""
        with self._changed:
            return 0.0 if self._active else self._clock() - self._busy_until

    def forward(self, state: State) -> bool:
        """Go on to a later state; False when it is none."""
        with self._changed:
            if state <= self.state:
                return False
            self.state = state
            self._changed.notify_all()
            return True

    def hold(self, *, held: bool) -> bool:
        """Claim nothing for now, or go on; False when that is so already."""
        with self._changed:
            if held == self.held:
                return False
            self.held = held
            self._changed.notify_all()
            return True

    def limit_to(self, concurrency: int | None) -> bool:
        """Take fewer jobs at once, never more than the owner allows; None is what he allows."""
        wanted = self._own if concurrency is None else min(concurrency, self._own)
        with self._changed:
            if wanted == self._limit:
                return False
            self._limit = wanted
            self._changed.notify_all()
            return True

    def await_free(self) -> int:
        """Wait for a free slot and return how many jobs may be claimed; 0 when none ever again."""
        with self._changed:
            self._changed.wait_for(lambda: self._over() or self._free() > 0)
            return 0 if self._over() else self._free()

    def wants_more(self) -> bool:
        """Say whether a claim is due."""
        with self._changed:
            return not self._over() and self._free() > 0

    def take(self, run: JobRun) -> bool:
        """Seat a job; False when it came too late, or when there is no place for it."""
        with self._changed:
            # An edge that grants more than was asked for gets the rest back.
            if self.state is not State.RUNNING or len(self._active) >= self._own:
                return False
            self._active.add(run)
            self.taken += 1
            return True

    def leave(self, run: JobRun) -> None:
        """Free a job's slot."""
        with self._changed:
            self._busy_until = self._clock()
            self._active.remove(run)
            self._changed.notify_all()

    def rest(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait, unless the daemon is to end or something else comes true; say whether to go on."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.state is not State.RUNNING or until(), timeout=seconds
            )
            return self.state is State.RUNNING

    def _over(self) -> bool:
        """Say whether nothing will be claimed any more; the lock is held."""
        enough = self._max_jobs is not None and self.taken >= self._max_jobs
        return enough or self.state is not State.RUNNING

    def _free(self) -> int:
        """Return how many jobs may be claimed; the lock is held."""
        free = 0 if self.held else self._limit - len(self._active)
        if self._max_jobs is not None:
            free = min(free, self._max_jobs - self.taken)
        return free
