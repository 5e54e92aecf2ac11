"""How long a job is ours: renewed in the background, and given up by our own clock in time.

Heartbeats go on until the last report is answered. Whoever works under a lease asks `interruption`
again and again; the answer comes from the clock at that moment, so that it is right even when the
heartbeat thread hangs in a call, or the whole daemon was stopped for an hour.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from remote_worker.clock import Clock, steady
from remote_worker.errors import Interruption, LeaseLost, Refused, Unanswered
from remote_worker.job import Beat, Job
from remote_worker.wire import Wire

log = logging.getLogger(__name__)

_NOT_OURS = frozenset({403, 404, 409, 410})
_UNAUTHORIZED = 401
_CONFIRM_PAUSE_S = 1.0
#: A grant that was not taken up within 30 s goes back; after this long it is not worth trying.
_TAKE_UP_S = 20.0
_TAKE_UP_PAUSE_S = 1.0
#: What is said of progress waits so long for more to be said, and then no longer for a heartbeat.
TELL_S = 2.0


def margin_s(lease_s: float) -> float:
    """Return how long before the lease's end we stop: the time a child may take to die."""
    return min(5.0, lease_s / 4)


def interval_s(lease_s: float, asked_s: float | None = None) -> float:
    """Return the time between heartbeats; the edge may ask for more of them, not for fewer."""
    own = max(1.0, lease_s / 3)
    return own if asked_s is None else min(own, max(1.0, asked_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a lease is kept."""

    lease_s: int
    interval_s: float
    clock: Clock = steady
    draw: Callable[[float, float], float] = random.uniform


class Lease:
    """One job's lease."""

    def __init__(
        self, wire: Wire, job: Job, *, terms: Terms, on_drain: Callable[[], None] = lambda: None
    ) -> None:
        self._wire = wire
        self._job = job
        self._terms = terms
        self._on_drain = on_drain
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beating = threading.Lock()
        self._stirred = threading.Event()
        self._due = threading.Event()
        self._deadline: float | None = None
        #: when the last heartbeat that renewed was sent
        self._renewed: float | None = None
        self._ended = False
        self._refused = False
        self._cancelled = False
        self._progress: Mapping[str, object] | None = None
        #: what the handler wants the next holder to have, should the job be given back
        self.checkpoint: object = None

    def take_up(self) -> None:
        """Send the first heartbeat, which makes the grant ours; nothing may run before it.

        Raises LeaseLost when the edge says no, or says nothing for too long.
        """
        until = self._terms.clock() + _TAKE_UP_S
        while not self._beat():
            if self._ended or self._refused or self._terms.clock() >= until:
                raise LeaseLost("the grant could not be taken up")
            if self._stop.wait(_TAKE_UP_PAUSE_S):
                raise LeaseLost("stopped before the grant was taken up")
        self._thread = threading.Thread(target=self._run, name=f"lease {self._job.id}", daemon=True)
        self._thread.start()

    def confirm(self, *, max_age_s: float, tries: int = 5) -> bool:
        """Say whether the edge confirmed the lease that recently, asking it if need be.

        For what cannot be taken back: a heartbeat answered a moment ago, and not just a deadline
        that has not come.
        """
        for again in range(tries):
            if self.interruption() is not None or (again and self._stop.wait(_CONFIRM_PAUSE_S)):
                return False
            renewed = self._renewed
            if renewed is not None and self._terms.clock() - renewed < max_age_s:
                return True
            self._beat()
        renewed = self._renewed
        return renewed is not None and self._terms.clock() - renewed < max_age_s

    def stop(self) -> None:
        """End the heartbeats; the lease is left to whatever the last report made of it."""
        self._stop.set()
        self.look()
        if self._thread is not None:
            self._thread.join()

    def progress(
        self, message: str, percent: float | None = None, more: Mapping[str, object] | None = None
    ) -> None:
        """Let a heartbeat soon say how far the work is, and ``more`` for Celery alone."""
        said = {"message": message, "percent": percent, **(more or {})}
        if said != self._progress:
            self._progress = said
            self._stirred.set()

    @property
    def said(self) -> str:
        """Return the last word of progress."""
        return "" if self._progress is None else str(self._progress["message"])

    @property
    def renewed(self) -> float | None:
        """Return when the last heartbeat that renewed was sent."""
        return self._renewed

    @property
    def refused(self) -> bool:
        """Say whether the edge no longer takes our credential."""
        return self._refused

    def cancel(self) -> None:
        """Learn from the edge's orders that the job shall end."""
        if not self._cancelled:
            log.info("cancel requested", extra={"action": "cancel", "job_id": self._job.id})
            self._cancelled = True

    def look(self) -> None:
        """Let the next heartbeat be now."""
        self._due.set()
        self._stirred.set()

    def end(self) -> None:
        """Learn from another call that the edge has ended the lease."""
        self._ended = True

    @property
    def ended(self) -> bool:
        """Say whether the edge told us that the lease is over: no report is of use."""
        return self._ended

    def interruption(self) -> Interruption | None:
        """Return why work under this lease must stop now, or None."""
        fenced = self._deadline is None or self._terms.clock() >= self._deadline
        if self._ended or self._refused or fenced:
            return Interruption.LEASE_LOST
        return Interruption.CANCELLED if self._cancelled else None

    def _run(self) -> None:
        """Renew until stopped or ended."""
        every = self._terms.interval_s
        while not self._ended:
            self._pause(self._terms.draw(every * 0.9, every * 1.1))
            if self._stop.is_set():
                return
            self._beat()

    def _pause(self, longest_s: float) -> None:
        """Wait for the next heartbeat's time; what was said in between brings it nearer."""
        until = self._terms.clock() + longest_s
        if self._stirred.wait(longest_s):
            self._due.wait(max(0.0, min(TELL_S, until - self._terms.clock())))
        self._stirred.clear()
        self._due.clear()

    def _beat(self) -> bool:
        """Send one heartbeat and say whether the edge renewed the lease."""
        with self._beating:
            return self._beat_alone()

    def _beat_alone(self) -> bool:
        """Do it, one at a time: the deadline must not move back."""
        lease_s = self._terms.lease_s
        sent = self._terms.clock()
        try:
            beat = self._wire.heartbeat(
                self._job,
                lease_s=lease_s,
                progress=self._progress,
                timeout_s=min(5.0, lease_s / 6),
            )
        except Unanswered as error:
            self._log(f"heartbeat unanswered: {error}")
            return False
        except Refused as error:
            self._ended = self._ended or error.status in _NOT_OURS
            # Who is locked out works no longer; what is finished waits in the spool for a new key.
            self._refused = error.status == _UNAUTHORIZED
            self._log(f"heartbeat refused: {error}")
            return False
        self._renew(beat, sent=sent)
        return True

    def _renew(self, beat: Beat, *, sent: float) -> None:
        """Move the deadline. It counts from the sending: the edge may have answered late."""
        lease_s = float(self._terms.lease_s)
        held = lease_s if beat.expires_in_s is None else min(lease_s, beat.expires_in_s)
        self._deadline = sent + held - margin_s(held)
        self._renewed = sent
        self._refused = False
        if beat.cancel_requested:
            self.cancel()
        if beat.drain:
            self._on_drain()

    def _log(self, text: str) -> None:
        """Log a heartbeat that did not renew."""
        log.warning(text, extra={"action": "heartbeat", "job_id": self._job.id})
