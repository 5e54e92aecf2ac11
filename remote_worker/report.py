"""The last words about a job: its files, then its ending, until the edge has answered."""

import logging
from collections.abc import Callable
from dataclasses import replace

from remote_worker.artifacts import Artifact
from remote_worker.client import Client
from remote_worker.clock import Clock, steady
from remote_worker.errors import LeaseLost, Refused, Unanswered
from remote_worker.job import Job
from remote_worker.lease import Lease
from remote_worker.spool import Ending, Report, Spool

log = logging.getLogger(__name__)

_UNAUTHORIZED = 401

#: For an hour finished work is worth holding a slot for.
DELIVER_FOR_S = 3600.0
#: While the daemon is being stopped a report gets this long; the next start sends what is left.
STOPPING_FOR_S = 10.0


class Reporter:
    """Sends reports; every one of them is on the disk before and until it was answered."""

    def __init__(self, client: Client, spool: Spool, *, clock: Clock = steady) -> None:
        self._client = client
        self._spool = spool
        self._clock = clock

    def file_and_send(
        self, job: Job, report: Report, *, lease: Lease, stopping: Callable[[], bool]
    ) -> bool:
        """Write a report down, then send it."""
        try:
            self._spool.put(job, report)
        except OSError:
            # A full disk must not cost what may still be said now.
            log.exception("report not spooled", extra=_about(job, "spool"))
        return self.send(job, report, lease=lease, stopping=stopping)

    def send(self, job: Job, report: Report, *, lease: Lease, stopping: Callable[[], bool]) -> bool:
        """Send a report and say whether the job is off our hands; if not, it stays in the spool."""
        begun = self._clock()

        def give_up() -> bool:
            limit = STOPPING_FOR_S if stopping() else DELIVER_FOR_S
            return lease.ended or self._clock() - begun >= limit

        try:
            self._deliver(job, report, give_up=give_up)
        except LeaseLost as error:
            log.warning("not ours any more: %s", error, extra=_about(job, "report_lost"))
        except (Unanswered, Refused) as error:
            if not lease.ended:
                log.warning("not reported: %s", error, extra=_about(job, "report_kept"))
                return False
            log.warning("lease ended before the report", extra=_about(job, "report_lost"))
        else:
            log.info("reported %s", report.ending, extra=_about(job, report.ending))
        self._spool.drop(job)
        return True

    def _deliver(self, job: Job, report: Report, *, give_up: Callable[[], bool]) -> None:
        """Upload, then report; an ending the edge does not take becomes a failure it can take."""
        try:
            ids = {a.name: self._upload(job, a, give_up) for a in report.artifacts}
            self._say(job, report, ids, give_up=give_up)
        except OSError as gone:
            # Somebody cleaned up here; without its files it is not the work that was done.
            failure = replace(
                report, ending=Ending.FAIL, text=f"a file of the job is gone: {gone.strerror}",
                error_type="artifact_lost", retryable=True, artifacts=(),
            )  # fmt: skip
            self._deliver(job, failure, give_up=give_up)
        except Refused as no:
            if no.status == _UNAUTHORIZED:
                # A credential can be mended, and then the spool is read again.
                raise
            if report.ending is Ending.FAIL and not report.artifacts:
                log.exception("the edge takes no report", extra=_about(job, "report_refused"))
                return
            text = f"the edge did not take this {report.ending}: {no}"
            if report.ending is Ending.FAIL:
                text = f"{report.text}\n({text})"
            failure = replace(
                report, ending=Ending.FAIL, text=text, error_type="report_refused",
                retryable=report.ending is Ending.RELEASE, artifacts=(),
            )  # fmt: skip
            self._deliver(job, failure, give_up=give_up)

    def _upload(self, job: Job, artifact: Artifact, give_up: Callable[[], bool]) -> str:
        """Upload one file."""
        return self._client.upload(job, artifact, give_up=give_up)

    def _say(
        self, job: Job, report: Report, ids: dict[str, str], *, give_up: Callable[[], bool]
    ) -> None:
        """Call the ending's endpoint."""
        match report.ending:
            case Ending.COMPLETE:
                result = _with_references(report, ids)
                self._client.complete(job, summary=report.text, result=result, give_up=give_up)
            case Ending.FAIL:
                self._client.fail(
                    job, message=report.text, error_type=report.error_type,
                    retryable=report.retryable, give_up=give_up,
                )  # fmt: skip
            case Ending.RELEASE:
                self._client.release(job, checkpoint=report.checkpoint, give_up=give_up)
            case Ending.CANCEL:
                self._client.acknowledge_cancel(job, message=report.text, give_up=give_up)


def _with_references(report: Report, ids: dict[str, str]) -> dict[str, object]:
    """Return the result with what the upload made known."""
    by_name = {artifact.name: artifact for artifact in report.artifacts}
    references = {
        key: {
            "artifactId": ids[name],
            "name": name,
            "digest": by_name[name].digest,
            "sizeBytes": by_name[name].size,
        }
        for key, name in report.references.items()
    }
    return {**report.result, **references}


def _about(job: Job, action: str) -> dict[str, object]:
    """Return the fields of a log record."""
    return {"action": action, "job_id": job.id, "fence": job.fence}
