"""The daemon: claims while it may, runs what it got, and knows in which order all that ends.

    running ──signal, drain order, --once──▶ quiet ──second signal──▶ stopping

States go forward only. Quiet claims nothing and finishes what runs; stopping ends the children and
gives their jobs back. Heartbeats of a job stop after its report, whatever the state.
"""

import contextlib
import enum
import logging
import math
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping

from remote_worker.client import Client
from remote_worker.clock import Clock, steady
from remote_worker.errors import Refused, Unanswered
from remote_worker.handlers.context import Handler
from remote_worker.job import Job, Welcome
from remote_worker.lease import Terms, interval_s
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Spool

log = logging.getLogger(__name__)

#: A claim in flight is left behind after this; what it may still be granted goes back by itself.
_CLAIM_GRACE_S = 2.0
#: An edge that answers "nothing" at once is not asked in a tight loop.
_MIN_CLAIM_S = 1.0
_IDLE_TICK_S = 0.5
_SIGNALLED, _LOOK = b"S", b"."

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_PREFLIGHT = 3
EXIT_REFUSED = 4
EXIT_UNREPORTED = 5


class State(enum.IntEnum):
    """How much the daemon still does."""

    #: claims and runs
    RUNNING = 0
    #: finishes what runs
    QUIET = 1
    #: ends what runs and gives it back
    STOPPING = 2


class Daemon:
    """One worker process."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: Client,
        spool: Spool,
        handlers: Mapping[str, Handler],
        make_redactor: Callable[[], Redactor],
        welcome: Welcome,
        clock: Clock = steady,
    ) -> None:
        self._settings = settings
        self._client = client
        self._spool = spool
        self._handlers = handlers
        self._make_redactor = make_redactor
        self._clock = clock
        self._wait_s = min(
            settings.wait_s, settings.wait_s if welcome.wait_s is None else welcome.wait_s
        )
        self._terms = Terms(
            lease_s=settings.lease_s,
            interval_s=interval_s(settings.lease_s, welcome.heartbeat_s),
            clock=clock,
        )
        self._state = State.RUNNING
        self._changed = threading.Condition()
        self._active: set[JobRun] = set()
        self._taken = 0
        self._busy_until = clock()
        self._exit = EXIT_OK
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def run(self) -> int:
        """Work until told to end, and return the exit code. Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        claims = threading.Thread(target=self._claim_loop, name="claims", daemon=True)
        claims.start()
        # Whoever started us waits for this line: the gates are open and we claim.
        log.info("ready, as %s", self._settings.worker_id, extra={"action": "ready"})
        quiet_since: float | None = None
        while True:
            ready, _, _ = select.select([self._wake], [], [], _IDLE_TICK_S)
            for _ in range(os.read(self._wake, 64).count(_SIGNALLED) if ready else 0):
                self._forward(State(min(self._state + 1, State.STOPPING)), "signal")
            self._check_idle()
            if self._state is State.RUNNING:
                continue
            if quiet_since is None:
                quiet_since = self._clock()
                if claims.is_alive():
                    # beside this loop, which must hear the second signal
                    threading.Thread(target=self._client.bye, name="bye", daemon=True).start()
            left = claims.is_alive() and self._clock() - quiet_since < _CLAIM_GRACE_S
            if not left and not self._active:
                log.info("ended", extra={"action": "ended", "jobs": self._taken})
                return self._exit

    def drain(self) -> None:
        """Claim no more, finish what runs."""
        self._forward(max(State.QUIET, self._state), "drain")

    def _on_signal(self, _number: int, _frame: object) -> None:
        """Count a signal; the main loop acts on it, for a handler may take no lock."""
        self._nudge(_SIGNALLED)

    def _nudge(self, why: bytes) -> None:
        """Wake the main loop; when the pipe is full it is awake."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, why)

    def _forward(self, state: State, why: str) -> None:
        """Go on to a later state."""
        with self._changed:
            if state <= self._state:
                return
            self._state = state
            self._changed.notify_all()
        if state is State.STOPPING:
            self._client.hurry()
        self._nudge(_LOOK)
        running = len(self._active)
        hint = f", finishing {running}; a second signal gives back" if running else ""
        if state is not State.QUIET:
            hint = ""
        log.info("%s: %s%s", why, state.name.lower(), hint, extra={"action": state.name.lower()})

    def _check_idle(self) -> None:
        """Drain when there was nothing to do for long enough."""
        limit = self._settings.idle_exit_s
        if limit is not None and not self._active and self._clock() - self._busy_until >= limit:
            self._forward(State.QUIET, "idle")

    def _stopping(self) -> bool:
        """Say whether children are to be stopped."""
        return self._state is State.STOPPING

    def _claim_loop(self) -> None:
        """Claim as long as the daemon runs; every way out of here drains it."""
        try:
            self._replay()
            while (free := self._await_slots()) > 0:
                asked = self._clock()
                jobs = self._claim(free)
                for job in jobs:
                    self._start(job)
                rest = _MIN_CLAIM_S - (self._clock() - asked)
                if not jobs and rest > 0:
                    self._rest(rest)
        except Refused as no:
            log.error("the edge refuses this worker: %s", no, extra={"action": "refused"})  # noqa: TRY400 - no bug
            self._exit = EXIT_REFUSED
        except Exception:
            log.exception("the claim loop failed", extra={"action": "bug"})
            self._exit = EXIT_ERROR
        finally:
            self._forward(State.QUIET, "no more claims")

    def _replay(self) -> None:
        """Report what an earlier daemon finished and could not report."""
        for job, report in self._spool.left():
            log.info("left behind: %s", report.ending, extra={"action": "replay", "job_id": job.id})
            if not self._job_run(job).replay(report):
                self._unreported()

    def _await_slots(self) -> int:
        """Wait for a free slot and return how many jobs may be claimed; 0 when none ever again."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._state is not State.RUNNING
                    or len(self._active) < self._settings.concurrency
                )
            )
            if self._state is not State.RUNNING:
                return 0
            free = self._settings.concurrency - len(self._active)
            if self._settings.max_jobs is not None:
                free = min(free, self._settings.max_jobs - self._taken)
            return free

    def _claim(self, free: int) -> list[Job]:
        """Claim up to the free slots."""
        wait_s = self._wait_s
        if self._settings.idle_exit_s is not None:
            wait_s = min(wait_s, math.ceil(self._settings.idle_exit_s))
        try:
            return self._client.claim(
                types=self._settings.types,
                capabilities=self._settings.capabilities,
                lease_s=self._settings.lease_s,
                wait_s=wait_s,
                max_jobs=free,
                give_up=lambda: self._state is not State.RUNNING,
            )
        except Unanswered as error:
            log.warning("claim given up: %s", error, extra={"action": "claim"})
            return []

    def _start(self, job: Job) -> None:
        """Give a job a thread, or give it back when it came too late."""
        run = self._job_run(job)
        with self._changed:
            # An edge that grants more than was asked for gets the rest back.
            room = len(self._active) < self._settings.concurrency
            wanted = room and self._state is State.RUNNING
            if wanted:
                self._active.add(run)
                self._taken += 1
        if wanted:
            threading.Thread(
                target=self._run_job, args=(run,), name=f"job {job.id}", daemon=True
            ).start()
        elif not run.give_back():
            self._unreported()

    def _run_job(self, run: JobRun) -> None:
        """Run one job in its thread."""
        done = False
        try:
            done = run.run()
        except Exception:
            log.exception("a job's thread failed", extra={"action": "bug", "job_id": run.job.id})
        finally:
            if not done:
                self._unreported()
            with self._changed:
                self._busy_until = self._clock()
                self._active.remove(run)
                self._changed.notify_all()
            self._nudge(_LOOK)

    def _unreported(self) -> None:
        """Remember in the exit code that something is left unsaid."""
        if self._exit == EXIT_OK:
            self._exit = EXIT_UNREPORTED

    def _job_run(self, job: Job) -> JobRun:
        """Put a job's run together."""
        return JobRun(
            job,
            client=self._client,
            settings=self._settings,
            spool=self._spool,
            handlers=self._handlers,
            redactor=self._make_redactor(),
            terms=self._terms,
            stopping=self._stopping,
            on_drain=self.drain,
        )

    def _rest(self, seconds: float) -> None:
        """Wait, unless the daemon is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.RUNNING, timeout=seconds)
