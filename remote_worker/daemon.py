"""The daemon: starts the loops, obeys signals and orders, and knows in which order all that ends.

Claims stop first, heartbeats last: a job's go on until its report is answered, whatever the state.
"""

import contextlib
import logging
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from remote_worker.claiming import Claiming, in_thread
from remote_worker.client import Client
from remote_worker.clock import Clock, steady
from remote_worker.control import FEATURE, Control
from remote_worker.errors import Refused
from remote_worker.handlers.context import Handler
from remote_worker.job import Job, Standing, Welcome
from remote_worker.lease import Terms, interval_s
from remote_worker.leftovers import Leftovers
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.slots import Slots, State
from remote_worker.spool import Spool

log = logging.getLogger(__name__)

#: A claim in flight is left behind after this; what it may still be granted goes back by itself.
_CLAIM_GRACE_S = 2.0
_TICK_S = 0.5
#: with no clock to watch, only signals and the ends of jobs wake the main loop
_IDLE_TICK_S = 10.0
_SIGNALLED, _LOOK = b"S", b"."

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_PREFLIGHT = 3
EXIT_REFUSED = 4
EXIT_UNREPORTED = 5


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
        wait_s = min(settings.wait_s, settings.wait_s if welcome.wait_s is None else welcome.wait_s)
        self.terms = Terms(
            lease_s=settings.lease_s,
            interval_s=interval_s(settings.lease_s, welcome.heartbeat_s),
            clock=clock,
        )
        self.slots = Slots(
            concurrency=settings.concurrency, max_jobs=settings.max_jobs, clock=clock
        )
        self.claiming = Claiming(
            settings, client=client, slots=self.slots, wait_s=wait_s, start=self._start, clock=clock
        )
        self._control: Control | None = None
        if FEATURE in welcome.features:
            self._control = Control(
                client, wait_s=wait_s, needed=self._needs_orders, obey=self._obey,
                locked_out=self._locked_out,
            )  # fmt: skip
        #: how the jobs so far ended here
        self.endings: Counter[str] = Counter()
        self._exit = EXIT_OK
        self._leftovers = Leftovers(
            spool,
            send=lambda job, report: self._job_run(job).replay(report),
            rest=self.slots.rest,
            done=self._replayed,
        )
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def run(self) -> int:
        """Work until told to end, and return the exit code. Call it in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # A signal may come to another thread: this one must wake all the same.
        before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            return self._run()
        finally:
            signal.set_wakeup_fd(before)

    def _run(self) -> int:
        """Start the loops, and see them to their end."""
        claims = threading.Thread(target=self._claim_loop, name="claims", daemon=True)
        claims.start()
        if self._control is not None:
            self._control.start()
        # Whoever started us waits for this line: the gates are open and we claim.
        log.info("ready, as %s", self._settings.worker_id, extra={"action": "ready"})
        quiet_since: float | None = None
        while True:
            self._listen()
            if self.slots.state is State.RUNNING:
                continue
            if quiet_since is None:
                quiet_since = self._clock()
                if claims.is_alive():
                    # beside this loop, which must hear the second signal
                    threading.Thread(target=self._client.bye, name="bye", daemon=True).start()
            quiet_s = self._clock() - quiet_since
            limit = self._settings.drain_timeout_s
            if limit is not None and quiet_s >= limit:
                self._forward(State.STOPPING, "drained long enough")
            left = claims.is_alive() and quiet_s < _CLAIM_GRACE_S
            if not left and not self.slots.running() and self._leftovers.tried:
                return self._end()

    def _end(self) -> int:
        """Say what is left to say, and return the exit code."""
        if self._control is not None:
            self._control.stop()
        if self.slots.state is not State.STOPPING:
            self._leftovers.last_round()
        if self._exit != EXIT_REFUSED:
            # what ran on after the first goodbye has ended: now it is offline at once
            self._client.bye()
        log.info("ended", extra={"action": "ended", "jobs": self.slots.taken})
        unsaid = self._exit == EXIT_OK and self._leftovers.unsaid
        return EXIT_UNREPORTED if unsaid else self._exit

    def drain(self) -> None:
        """Obey a heartbeat that says so: be held where orders come that end it, else go quiet."""
        if self._control is None:
            self._forward(State.QUIET, "drain")
        elif not self.slots.held:
            # a heartbeat may be older than the last order: the orders are asked
            self._control.look()

    def _listen(self) -> None:
        """Wait for a signal or a moment, and see whether there was nothing to do for too long."""
        limit = self._settings.idle_exit_s
        asleep = limit is None and self.slots.state is State.RUNNING
        ready, _, _ = select.select([self._wake], [], [], _IDLE_TICK_S if asleep else _TICK_S)
        for _ in range(os.read(self._wake, 64).count(_SIGNALLED) if ready else 0):
            self._forward(State(min(self.slots.state + 1, State.STOPPING)), "signal")
        if limit is not None and self._leftovers.tried and self.slots.idle_s() >= limit:
            self._forward(State.QUIET, "idle")

    def _on_signal(self, _number: int, _frame: object) -> None:
        """Count a signal; the main loop acts on it, for a handler may take no lock."""
        self._nudge(_SIGNALLED)

    def _nudge(self, why: bytes) -> None:
        """Wake the main loop; when the pipe is full it is awake."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, why)

    def _forward(self, state: State, why: str) -> None:
        """Go on to a later state."""
        if not self.slots.forward(state):
            return
        if state is State.STOPPING:
            self._client.hurry()
        self._nudge(_LOOK)
        running = len(self.slots.running())
        hint = f", finishing {running}; a second signal gives back" if running else ""
        if state is not State.QUIET:
            hint = ""
        log.info("%s: %s%s", why, state.name.lower(), hint, extra={"action": state.name.lower()})

    def _needs_orders(self) -> bool:
        """Say whether a call may wait for orders: else the claim that waits is ended for them."""
        return bool(self.slots.running()) or not self.slots.wants_more()

    def _obey(self, standing: Standing) -> None:
        """Do as the edge's orders say; doing it again changes nothing."""
        if standing.drain is not None and self.slots.hold(held=standing.drain):
            word = "held: claiming nothing" if standing.drain else "resumed: claiming again"
            log.info("%s, by order", word, extra={"action": "order"})
        if self.slots.limit_to(standing.concurrency):
            log.info("%d slots, by order", self.slots.limit, extra={"action": "order"})
        for run in self.slots.running():
            if run.job.id in standing.cancels:
                run.lease.cancel()

    def _locked_out(self) -> None:
        """Have each job's next heartbeat at once: it tells whether the work must stop."""
        for run in self.slots.running():
            run.lease.look()

    def _stopping(self) -> bool:
        """Say whether children are to be stopped."""
        return self.slots.state is State.STOPPING

    def _claim_loop(self) -> None:
        """Claim as long as the daemon runs; every way out of here drains it."""
        try:
            self._leftovers.start()
            self.claiming.run()
        except Refused as no:
            log.error("the edge refuses this worker: %s", no, extra={"action": "refused"})  # noqa: TRY400 - no bug
            self._exit = EXIT_REFUSED
        except Exception:
            log.exception("the claim loop failed", extra={"action": "bug"})
            self._exit = EXIT_ERROR
        finally:
            self._forward(State.QUIET, "no more claims")

    def _replayed(self) -> None:
        """Count idleness from when what an earlier daemon left has been tried."""
        self.slots.touch()
        self._nudge(_LOOK)

    def _start(self, job: Job) -> None:
        """Give a job a thread, or give it back when it came too late."""
        run = self._job_run(job)
        if self.slots.take(run):
            in_thread(run, self._run_job)
            if self._control is not None:
                self._control.look()
        elif not run.give_back():
            self._leftovers.keep(job)

    def _run_job(self, run: JobRun) -> None:
        """Run one job in its thread."""
        done = False
        try:
            done = run.run()
        except Exception:
            log.exception("a job's thread failed", extra={"action": "bug", "job_id": run.job.id})
        finally:
            if not done:
                self._leftovers.keep(run.job)
            self.endings[run.ending] += 1
            self.slots.leave(run)
            self._nudge(_LOOK)

    def _job_run(self, job: Job) -> JobRun:
        """Put a job's run together."""
        return JobRun(
            job,
            client=self._client,
            settings=self._settings,
            spool=self._spool,
            handlers=self._handlers,
            redactor=self._make_redactor(),
            terms=self.terms,
            stopping=self._stopping,
            on_drain=self.drain,
        )
