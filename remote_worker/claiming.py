"""The claim loop: asks for jobs while there are slots, and gives each that comes a thread."""

import logging
import math
import threading
from collections.abc import Callable

from remote_worker.client import Client
from remote_worker.clock import Clock, steady
from remote_worker.errors import Unanswered
from remote_worker.job import Job
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.slots import Slots, State

log = logging.getLogger(__name__)

#: An edge that answers "nothing" at once is not asked in a tight loop.
_MIN_CLAIM_S = 1.0
#: A claim that has had no answer for so long beyond its wait means that the edge hears nothing.
_DEAF_S = 60.0


class Claiming:
    """Claims while it may; knows how long the edge has been silent."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: Client,
        slots: Slots,
        wait_s: int,
        start: Callable[[Job], None],
        clock: Clock = steady,
    ) -> None:
        """Start what is granted by ``start``."""
        self._settings = settings
        self._client = client
        self._slots = slots
        self._start = start
        self._clock = clock
        self._wait_s = wait_s
        if settings.idle_exit_s is not None:
            self._wait_s = min(wait_s, math.ceil(settings.idle_exit_s))
        self._asked: float | None = None
        #: when the edge last answered a claim
        self.answered: float | None = None
        self.claims = 0

    def run(self) -> None:
        """Claim until nothing is to be claimed any more. Raises Refused."""
        while (free := self._slots.await_free()) > 0:
            self._asked = asked = self._clock()
            jobs = self._claim(free)
            self._asked = None
            for job in jobs:
                self._start(job)
            rest = _MIN_CLAIM_S - (self._clock() - asked)
            if not jobs and rest > 0:
                self._slots.rest(rest)

    def deaf_s(self) -> float:
        """Return for how long a claim has been without the answer it should have had."""
        asked = self._asked
        return 0.0 if asked is None else max(0.0, self._clock() - asked - self._wait_s)

    @property
    def deaf(self) -> bool:
        """Say whether the edge does not hear us."""
        return self.deaf_s() > _DEAF_S

    def _claim(self, free: int) -> list[Job]:
        """Claim up to the free slots."""
        try:
            jobs = self._client.claim(
                types=self._settings.types,
                capabilities=self._settings.capabilities,
                lease_s=self._settings.lease_s,
                wait_s=self._wait_s,
                max_jobs=free,
                give_up=lambda: self._slots.state is not State.RUNNING,
            )
        except Unanswered as error:
            log.warning("claim given up: %s", error, extra={"action": "claim"})
            return []
        self.answered = self._clock()
        self.claims += 1
        return jobs


def in_thread(run: JobRun, target: Callable[[JobRun], None]) -> None:
    """Give a job's run a thread of its own."""
    name = f"job {run.job.id}"
    threading.Thread(target=target, args=(run,), name=name, daemon=True).start()
