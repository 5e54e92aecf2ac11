"""The lines a job adds to its log at the edge: in batches, in order, never at its expense."""

import logging
import threading
from collections import deque
from collections.abc import Mapping

from remote_worker.client import Client
from remote_worker.errors import LeaseLost, WorkerError
from remote_worker.job import Event, Job
from remote_worker.lease import Lease
from remote_worker.redact import Redactor

log = logging.getLogger(__name__)

_BATCH = 100
_EVERY_S = 1.0
#: More than this waiting means that the edge is away or the job shouts; the oldest go.
_MAX_WAITING = 2000
_MAX_MESSAGE = 8000


def _cut(text: str) -> str:
    """Return a message, or its beginning and how much is missing."""
    over = len(text) - _MAX_MESSAGE
    return text if over <= 0 else f"{text[:_MAX_MESSAGE]}… [cut: {over} characters left out]"


class EventLog:
    """One job's events on their way to the edge."""

    def __init__(self, client: Client, job: Job, lease: Lease, *, redactor: Redactor) -> None:
        self._client = client
        self._job = job
        self._lease = lease
        self._redactor = redactor
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._seq = 0
        #: events that never reached the edge
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name=f"events {job.id}", daemon=True)

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def append(self, level: str, message: str, payload: Mapping[str, object] | None = None) -> None:
        """Add a line; returns at once and never raises."""
        text = self._redactor.text(message.strip()) or "(empty)"
        clean = (
            None if payload is None else {k: self._redactor.value(v) for k, v in payload.items()}
        )
        with self._lock:
            self._seq += 1
            self._waiting.append(
                Event(seq=self._seq, level=level, message=_cut(text), payload=clean)
            )
            if len(self._waiting) > _MAX_WAITING:
                self._waiting.popleft()
                self.lost += 1

    def close(self) -> None:
        """Send what is left: after the report the edge takes no more."""
        self._stop.set()
        self._thread.join()
        lost = self.lost
        if lost and not self._lease.ended:
            # whoever reads the log shall not take it for whole
            self.append("warn", "Events were left out", {"count": lost})
            self._send()
            self.lost = lost
        if lost:
            log.warning(
                "%d events lost", self.lost, extra={"action": "events", "job_id": self._job.id}
            )

    def _run(self) -> None:
        """Send a batch a second, and the rest at the end."""
        while not self._stop.wait(_EVERY_S):
            self._send()
        while self._send():
            pass

    def _send(self) -> bool:
        """Send one batch and say whether more may be waiting."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        if not batch:
            return False
        try:
            self._client.append(self._job, batch)
        except LeaseLost:
            self._lease.end()
            self.lost += len(batch)
        except WorkerError as error:
            self.lost += len(batch)
            log.warning(
                "events not taken: %s", error, extra={"action": "events", "job_id": self._job.id}
            )
        return not self._lease.ended
