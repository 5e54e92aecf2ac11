"""Reports that are finished here and unsaid: tried again for as long as the daemon claims.

They come from two sides: what an earlier daemon left in the spool, and what a job of this one could
not say in its time. The edge has the last word on each: it takes it, or the lease no longer stands.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from remote_worker.job import Job
from remote_worker.spool import Report, Spool

log = logging.getLogger(__name__)

#: between two rounds; each of them asks once for every report
_AGAIN_S = 30.0


class Leftovers:
    """What is to be said yet, and the loop that says it."""

    def __init__(
        self,
        spool: Spool,
        *,
        send: Callable[[Job, Report], bool],
        rest: Callable[[float], bool],
        done: Callable[[], None],
    ) -> None:
        """Say each by ``send``; ``rest`` pauses and says whether to go on.

        ``done`` hears of the end of the first round.
        """
        self._spool = spool
        self._send = send
        self._rest = rest
        self._done = done
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int | None], tuple[Job, Report | None]] = {}
        #: what an earlier daemon left has been tried
        self.tried = False

    def keep(self, job: Job) -> None:
        """Learn that a job's report stays in the spool, or that there is nobody to tell."""
        with self._lock:
            self._kept[job.id, job.fence] = (job, self._spool.report(job))

    @property
    def unsaid(self) -> int:
        """Return how many are left."""
        with self._lock:
            return len(self._kept)

    def start(self) -> None:
        """Take stock before anything runs, and begin."""
        try:
            left = self._spool.left()
        except BaseException:
            self.tried = True
            raise
        threading.Thread(target=self._run, args=(left,), name="leftovers", daemon=True).start()

    def _run(self, left: Sequence[tuple[Job, Report]]) -> None:
        """Say what an earlier daemon left; then, round by round, whatever still is unsaid."""
        try:
            for job, report in left:
                about = {"action": "replay", "job_id": job.id}
                log.info("left behind: %s", report.ending, extra=about)
                if not self._send(job, report):
                    self.keep(job)
        finally:
            self.tried = True
            self._done()
        while self._rest(_AGAIN_S):
            self._round()

    def last_round(self) -> None:
        """Try once more before the end; whoever is not there for the first is not for the next."""
        self._round(patient=False)

    def _round(self, *, patient: bool = True) -> None:
        """Try each once more; the lease of one that was taken meanwhile tells us so."""
        self._spool.clear()
        with self._lock:
            kept = [*self._kept.items()]
        for key, (job, report) in kept:
            if report is None:
                continue
            if self._send(job, report):
                with self._lock:
                    self._kept.pop(key, None)
            elif not patient:
                return
