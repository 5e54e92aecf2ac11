"""The orders of writes of whoever holds a job: heartbeat, events, files, and each way to end it.

First the ledger, in one transaction with its events and effects, then the reservations; that step
is best effort, and complete and fail never need Redis. Only a heartbeat begins there, and asks the
ledger when Redis does not know the lease.

Every call may come twice; each docstring says what the second gives.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from cachetools import LRUCache

from broker.clock import Clock, from_ms
from broker.completing import Completing, digest_of
from broker.errors import (
    LogFull,
    QuotaExceeded,
    ReservationsUnavailable,
)
from broker.indexing import Indexer
from broker.job_text import load, with_flag
from broker.ledger import (
    artifacts,
    events,
    holders,
    log_caps,
    moves,
    parts,
    transitions,
    uploads,
)
from broker.ledger.engine import Ledger
from broker.records import (
    Artifact,
    Event,
    Heartbeat,
    Holder,
    Job,
    Json,
    NewEvent,
    StoredFile,
)
from broker.reservations.shapes import Renewed
from broker.reservations.store import Reservations
from broker.settings import QueueSettings

log = logging.getLogger(__name__)

#: jobs whose queue a process remembers, so that heartbeats need no SQL
REMEMBERED: Final = 100_000


class Holding(Completing):
    """What a holder may say of its job; threads may share one."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        *,
        index: Indexer,
        clock: Clock,
        settings: QueueSettings,
    ) -> None:
        """Stand on the two stores; opens nothing."""
        super().__init__(ledger, index=index, clock=clock)
        self.reservations = reservations
        self.settings = settings
        self._queue_names: LRUCache[str, str] = LRUCache(REMEMBERED)
        self._queues_met: set[str] = set()
        self._lock = threading.Lock()

    def heartbeat(
        self,
        job_id: str,
        holder: Holder,
        *,
        lease_seconds: int,
        progress: Mapping[str, Json] | None = None,
    ) -> Heartbeat:
        """Extend a lease, in Redis alone when it knows the lease; again extends it from then.

        ``progress`` is shown while the lease lasts, and kept nowhere else.
        """
        said = "" if progress is None else json.dumps(progress)
        try:
            renewed = self._renew(job_id, holder, lease_seconds * 1000, said)
        except ReservationsUnavailable:
            renewed = None
        if renewed is None:
            return self._heartbeat_by_ledger(job_id, holder, lease_seconds)
        deadline = from_ms(renewed.deadline_ms)
        job = replace(with_flag(load(renewed.job), renewed.cancel), lease_expires_at=deadline)
        return Heartbeat(job=job, expires_in_s=float(lease_seconds))

    def _heartbeat_by_ledger(self, job_id: str, holder: Holder, lease_seconds: int) -> Heartbeat:
        """Let the ledger say who holds a job that Redis does not know, or is about to expire."""
        now = self.clock.now()
        until = now + timedelta(seconds=lease_seconds)
        with self.ledger.write() as conn:
            job, _ = holders.held(conn, job_id, holder)
            moves.renew(conn, job, until=until, lease_seconds=lease_seconds)
        self.remember(job.id, job.queue)
        job = replace(job, lease_expires_at=until, held_until=None, lease_seconds=lease_seconds)
        self.index.put([job], force=True)
        return Heartbeat(job=job, expires_in_s=float(lease_seconds))

    def fail(
        self,
        job_id: str,
        holder: Holder,
        *,
        error_message: str,
        retryable: bool = False,
        error_type: str | None = None,
        traceback: str | None = None,
        retry_after_s: float | None = None,
    ) -> Job:
        """End a lease with failure; the same again under its lease id gives the job as it is."""
        error = {"message": error_message, "type": error_type, "traceback": traceback}
        digest = digest_of("fail", holder, error, retryable, retry_after_s)
        now = self.clock.now()
        with self.ledger.write() as conn:
            job, repeated = holders.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.fail(
                conn, job, error=error, retryable=retryable, retry_after_s=retry_after_s,
                digest=digest, now=now,
            )  # fmt: skip
        self.index.put([job])
        return job

    def release(
        self, job_id: str, holder: Holder, *, reason: str | None = None, checkpoint: Json = None
    ) -> Job:
        """Give a job back at no cost, its next holder getting the ``checkpoint``.

        Again under its lease id gives the job as it is.
        """
        digest = digest_of("release", holder)
        with self.ledger.write() as conn:
            job, repeated = holders.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.release(
                conn, job, outcome="released", reason=reason, checkpoint=checkpoint, digest=digest,
                now=self.clock.now(),
            )  # fmt: skip
        self.index.put([job])
        return job

    def cancel_ack(self, job_id: str, holder: Holder, *, message: str | None = None) -> Job:
        """Say that a cancelled job's work has stopped; again under its lease id, the same job."""
        digest = digest_of("cancel_ack", holder)
        with self.ledger.write() as conn:
            job, repeated = holders.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.acknowledge_cancel(
                conn, job, message=message, digest=digest, now=self.clock.now()
            )
        self.index.put([job])
        return job

    def append_events(self, job_id: str, holder: Holder, new: Sequence[NewEvent]) -> list[Event]:
        """Append to a job's log; entries with a ``worker_seq`` sent before are answered alike.

        Raises:
            LogFull: none of these has room any more; the log says so itself.
        """
        most, small = self.settings.events_per_job, [log_caps.trimmed(one) for one in new]
        try:
            with self.ledger.write() as conn:
                job, _ = holders.held(conn, job_id, holder)
                made = events.append(conn, job, small, self.clock.now(), most=most)
        except LogFull:
            with self.ledger.write() as conn:
                job, _ = holders.held(conn, job_id, holder)
                now = self.clock.now()
                log_caps.mark_full(conn, job, most=most, refused=len(new), now=now)
            raise
        self.take_up(job, holder)
        return made

    def upload_room(self, job_id: str, holder: Holder, *, name: str | None) -> int:
        """Say how large a file a holder may upload, before any byte of it is read.

        Raises:
            NotAuthorized: another worker holds it; otherwise as every call of a holder.
            QuotaExceeded: nothing more, unless ``name`` is stored already.
        """
        most = self.settings.artifact_max_bytes
        with self.ledger.read() as conn:
            job = uploads.may_upload(conn, job_id, holder)
            if uploads.stored(conn, job, name):
                return most
            now = self.clock.now()
            return min(most, uploads.room(conn, job, holder, settings=self.settings, now=now))

    def add_artifact(
        self,
        job_id: str,
        holder: Holder,
        *,
        name: str,
        content_type: str | None,
        file: StoredFile,
        upload_id: str | None = None,
    ) -> Artifact:
        """Name stored bytes as a file of a job; again gives the same artifact.

        Those that came in parts have had their room since ``upload_id`` was announced.

        Raises:
            QuotaExceeded: the job or its worker has no room for them.
        """
        now = self.clock.now()
        with self.ledger.write() as conn:
            job = uploads.may_upload(conn, job_id, holder, lock=True)
            if not uploads.stored(conn, job, name):
                room = uploads.room(
                    conn, job, holder, settings=self.settings, now=now, besides=upload_id
                )
                if file.size_bytes > room:
                    raise QuotaExceeded
            artifact, new = artifacts.add(
                conn, job, name=name, content_type=content_type, file=file, now=now
            )
            if upload_id is not None:
                parts.settle(conn, upload_id, artifact)
            if new:
                payload = {"name": name, "sizeBytes": file.size_bytes}
                events.append(
                    conn, job, [NewEvent(message="Artifact uploaded", payload=payload)], now
                )
        self.take_up(job, holder)
        return artifact

    def take_up(self, job: Job, holder: Holder) -> None:
        """Let any call on a job count as taking its grant up (decision 1)."""
        if job.held_until is None:
            return
        try:
            self.reservations.renew(
                job.queue, job.id, lease_id=holder.lease_id, worker_id=holder.worker_id,
                lease_ms=None,
            )  # fmt: skip
        except ReservationsUnavailable as error:
            log.warning("not taken up: %s", error, extra={"action": "take_up", "job_id": job.id})

    def remember(self, job_id: str, queue: str) -> None:
        """Keep in mind which queue a job is of, for its heartbeats."""
        with self._lock:
            self._queue_names[job_id] = queue
            self._queues_met.add(queue)

    def _renew(self, job_id: str, holder: Holder, lease_ms: int, progress: str) -> Renewed | None:
        """Renew a lease in Redis; a job new to this process is looked for in the queues it met."""
        with self._lock:
            known = self._queue_names.get(job_id)
            queues = [known] if known else sorted(self._queues_met)
        for queue in queues:
            renewed = self.reservations.renew(
                queue, job_id, lease_id=holder.lease_id, worker_id=holder.worker_id,
                lease_ms=lease_ms, progress=progress,
            )  # fmt: skip
            if renewed is not None:
                if known is None:
                    self.remember(job_id, queue)
                return renewed
        return None
