"""The life of one job at the worker, from the grant to the answered report."""

import json
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from remote_worker.artifacts import Artifact, is_file, seal
from remote_worker.client import Client
from remote_worker.errors import Interrupted, Interruption, JobFailed, LeaseLost
from remote_worker.events import EventLog
from remote_worker.handlers.context import Context, Handler, Outcome
from remote_worker.job import Job
from remote_worker.lease import Lease, Terms
from remote_worker.limits import TIMED_OUT, TimeLimits
from remote_worker.process import GRACE_S
from remote_worker.redact import Redactor
from remote_worker.report import Reporter
from remote_worker.settings import Settings
from remote_worker.spool import Ending, Report, Spool

log = logging.getLogger(__name__)

_MAX_SUMMARY = 4000
_MAX_ERROR = 8000
_MAX_LOGGED = 300
_MAX_CHECKPOINT = 64 * 1024


class JobRun:
    """One granted job."""

    def __init__(
        self,
        job: Job,
        *,
        client: Client,
        settings: Settings,
        spool: Spool,
        handlers: Mapping[str, Handler],
        redactor: Redactor,
        terms: Terms,
        stopping: Callable[[], bool],
        on_drain: Callable[[], None],
    ) -> None:
        self.job = job
        self._settings = settings
        self._spool = spool
        self._handlers = handlers
        self._redactor = redactor
        self._stopping = stopping
        self._lease = Lease(client.wire, job, terms=terms, on_drain=on_drain)
        self._events = EventLog(client, job, self._lease, redactor=redactor)
        self._reporter = Reporter(client, spool, clock=terms.clock)
        self._clock = terms.clock
        self._limits = self._time_limits()
        self.started = terms.clock()
        #: how it ended here; "lost" until there is something to report
        self.ending = "lost"

    def run(self) -> bool:
        """Do the job and say whether it is off our hands."""
        try:
            self._lease.take_up()
        except LeaseLost as error:
            log.warning("%s", error, extra=self._about("lost"))
            return True
        try:
            self._expect_the_worst()
            self._events.start()
            try:
                report = self._work()
            finally:
                self._events.close()
            if report is None:
                log.warning("lease lost, nothing reported", extra=self._about("lost"))
                self._spool.drop(self.job)
                return True
            self.ending = str(report.ending)
            return self._reporter.file_and_send(
                self.job, report, lease=self._lease, stopping=self._stopping
            )
        finally:
            # The last thing to stop: until the report is answered the job is ours to keep alive.
            self._lease.stop()

    def replay(self, report: Report) -> bool:
        """Send a report an earlier daemon left behind, if the lease still stands."""
        try:
            self._lease.take_up()
        except LeaseLost as error:
            log.warning("left behind, not reported: %s", error, extra=self._about("replay"))
            if self._lease.ended:
                self._spool.drop(self.job)
            return self._lease.ended
        try:
            return self._reporter.send(self.job, report, lease=self._lease, stopping=self._stopping)
        finally:
            self._lease.stop()

    @property
    def lease(self) -> Lease:
        """Return the lease it runs under."""
        return self._lease

    def give_back(self) -> bool:
        """Release a job that was granted when nothing may be started any more."""
        release = Report(ending=Ending.RELEASE)
        return self._reporter.send(self.job, release, lease=self._lease, stopping=self._stopping)

    def _expect_the_worst(self) -> None:
        """Write down what the next daemon reports should this one be killed before its time.

        A failure, for the attempt counts: a job that kills its daemon must not do so for ever.
        """
        try:
            self._spool.put(
                self.job,
                Report(
                    ending=Ending.FAIL, text="the worker was killed while it ran the job",
                    error_type="worker_killed", retryable=True,
                ),
            )  # fmt: skip
        except OSError:
            log.exception("nothing spooled", extra=self._about("spool"))

    def _work(self) -> Report | None:
        """Run the handler and return how it ended; None when there is nobody left to tell."""
        log.info("started %s", self.job.type, extra=self._about("start"))
        self._limits = self._time_limits()
        try:
            return self._completed(self._handle())
        except JobFailed as failure:
            return self._failed(failure)
        except Interrupted as stop:
            return self._interrupted(stop)
        except Exception as bug:
            # A handler's bug is one job's failure, not the daemon's end.
            log.exception("handler failed", extra=self._about("bug"))
            last = traceback.format_exception_only(bug)[-1].strip()
            return self._failed(
                JobFailed(f"the worker failed: {last}", error_type=type(bug).__name__)
            )

    def _interrupted(self, stop: Interrupted) -> Report | None:
        """Return what is told of a job that had to stop; None when nobody is to be told."""
        match stop.why:
            case Interruption.LEASE_LOST:
                return None
            case Interruption.CANCELLED:
                return Report(ending=Ending.CANCEL, text="stopped as asked")
            case Interruption.STOPPING:
                return Report(ending=Ending.RELEASE, checkpoint=self._checkpoint())
            case Interruption.SOFT_TIME_LIMIT | Interruption.TIME_LIMIT:
                return self._failed(JobFailed(str(stop), error_type=TIMED_OUT[stop.why]))

    def _time_limits(self) -> TimeLimits:
        """Return the task's own limits, counted from now."""
        hard_s, soft_s = self.job.time_limit_s, self.job.soft_time_limit_s
        return TimeLimits(hard_s=hard_s, soft_s=soft_s, clock=self._clock)

    def _handle(self) -> Outcome:
        """Find the handler and let it work."""
        if self.job.defect is not None:
            raise JobFailed(self.job.defect, error_type="bad_job")
        handler = self._handlers.get(self.job.type)
        if handler is None:
            raise JobFailed(
                f"this worker does not run jobs of type {self.job.type!r}; it runs:"
                f" {', '.join(sorted(self._handlers))}",
                error_type="unsupported_job_type",
            )
        context = Context(
            job=self.job,
            settings=self._settings,
            directory=self._spool.directory(self.job),
            events=self._events,
            lease=self._lease,
            redactor=self._redactor,
            interrupt=self._interruption,
            grace_s=self._limits.grace_s(GRACE_S),
        )
        outcome = handler(context)
        if self._lease.interruption() is Interruption.LEASE_LOST:
            # it came to its end while we slept: somebody else may be at it by now
            raise Interrupted(Interruption.LEASE_LOST)
        return outcome

    def _checkpoint(self) -> object:
        """Return what the handler left for the next holder, without secrets; None if too large."""
        clean = self._redactor.value(self._lease.checkpoint)
        if len(json.dumps(clean)) <= _MAX_CHECKPOINT:
            return clean
        log.warning("checkpoint too large, left out", extra=self._about("checkpoint"))
        return None

    def _interruption(self) -> Interruption | None:
        """Return why the handler must stop: a lost lease before anything we would like to do."""
        why = self._lease.interruption()
        if why is None:
            why = Interruption.STOPPING if self._stopping() else self._limits.due()
        return why

    def _completed(self, outcome: Outcome) -> Report:
        """Turn an outcome into the report of it."""
        result = self._redactor.value(dict(outcome.result))
        artifacts = _sealed(outcome.files)
        missing = {*outcome.references.values()} - {one.name for one in artifacts}
        if missing:
            raise JobFailed(
                f"no plain file is where {', '.join(sorted(missing))} should be",
                error_type="artifact_lost",
            )
        return Report(
            ending=Ending.COMPLETE,
            text=self._redactor.text(outcome.summary)[:_MAX_SUMMARY],
            result=result if isinstance(result, dict) else {},
            artifacts=artifacts,
            references=dict(outcome.references),
        )

    def _failed(self, failure: JobFailed) -> Report:
        """Turn a failure into the report of it."""
        text = self._redactor.text(str(failure)).strip() or failure.error_type
        # the owner of this machine mostly has no other way to read why
        first = text.partition("\n")[0][:_MAX_LOGGED]
        log.info("failed: %s: %s", failure.error_type, first, extra=self._about("failed"))
        return Report(
            ending=Ending.FAIL,
            text=text[:_MAX_ERROR],
            artifacts=_sealed(failure.files),
            error_type=failure.error_type,
            retryable=failure.retryable,
        )

    def _about(self, action: str) -> dict[str, object]:
        """Return the fields of a log record."""
        return {"action": action, "job_id": self.job.id, "fence": self.job.fence}


def _sealed(files: Sequence[tuple[str, Path]]) -> tuple[Artifact, ...]:
    """Seal the files that came to be; what a program put in the place of one is none."""
    sealed = []
    for name, path in files:
        try:
            if is_file(path):
                sealed.append(seal(name, path))
        except OSError as error:
            log.warning("%s cannot be read: %s", name, error, extra={"action": "seal"})
    return tuple(sealed)
