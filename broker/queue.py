"""The orders of writes: SQL decides, then Redis is told; every promise of the queue is made here.

Each method first writes the ledger, in one transaction with its events and effects, and only then
the reservations. The second step is best effort: complete and fail never need Redis, and what a
crash between the two leaves behind, reconcile and the sweeps put right. Claims alone begin in
Redis; their order is in ``claims``.

Every call may come twice; each docstring says what the second gives.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from cachetools import LRUCache

from broker import figures
from broker.catalog import Catalog
from broker.claims import Claims
from broker.clock import Clock, from_ms, to_ms
from broker.errors import (
    DrawbridgeError,
    InvalidPayload,
    JobNotFound,
    LedgerUnavailable,
    NotAuthorized,
    OwnershipMismatch,
    ReservationsUnavailable,
    Unavailable,
)
from broker.expiry import Expiry
from broker.indexing import Indexer, load, with_flag
from broker.ledger import artifacts, batches, events, intake, jobs, migrate, transitions
from broker.ledger.engine import Ledger
from broker.policy import Eligibility
from broker.records import (
    Artifact,
    ClaimRequest,
    Completion,
    Event,
    Heartbeat,
    Holder,
    Ingested,
    Job,
    Json,
    NewEvent,
    NewJob,
    Redrive,
    Redriven,
    Rejection,
    StoredFile,
)
from broker.redrive import Redriver
from broker.reservations.keys import QUEUE_NAME
from broker.reservations.shapes import Renewed
from broker.reservations.store import Reservations
from broker.roster import Roster
from broker.settings import QueueSettings

log = logging.getLogger(__name__)

#: jobs whose queue a process remembers, so that heartbeats need no SQL
REMEMBERED: Final = 100_000


class JobQueue:
    """The queue, as edges and bridges call it; threads may share one."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        *,
        clock: Clock,
        settings: QueueSettings,
    ) -> None:
        """Stand on the two stores; opens nothing."""
        self.ledger = ledger
        self.reservations = reservations
        self.clock = clock
        self.settings = settings
        self.index = Indexer(ledger, reservations, clock)
        self.catalog = Catalog(ledger)
        self.roster = Roster(ledger, reservations, clock=clock)
        self.expiry = Expiry(ledger, reservations, index=self.index, clock=clock, settings=settings)
        self._claims = Claims(
            ledger, reservations, index=self.index, expiry=self.expiry, clock=clock,
            settings=settings,
        )  # fmt: skip
        self._redriver = Redriver(ledger, index=self.index, clock=clock)
        self._queue_names: LRUCache[str, str] = LRUCache(REMEMBERED)
        self._queues_met: set[str] = set()
        self._lock = threading.Lock()

    # -- producers and operators -------------------------------------------------------------

    def create(self, new: NewJob) -> Job:
        """Queue a job; the same creator's same idempotency key gives the same job again."""
        if not QUEUE_NAME.fullmatch(new.queue):
            raise InvalidPayload(f"queue must match {QUEUE_NAME.pattern}")
        with self.ledger.write() as conn:
            job = intake.create(conn, new, self.clock.now())
        self._place([job])
        return job

    def ingest(self, items: Sequence[NewJob | Rejection]) -> list[Ingested]:
        """Queue what came from Celery, all or none; a task id known already is a duplicate.

        Once it returns, the messages may be acknowledged.
        """
        if not items:
            return []
        with self.ledger.write() as conn:
            outcomes = intake.ingest(conn, items, self.clock.now())
        figures.ingested(
            (item.queue, one.outcome) for item, one in zip(items, outcomes, strict=True)
        )
        self._place([one.job for one in outcomes if one.job is not None])
        return outcomes

    def cancel(
        self, job_id: str, *, reason: str | None = None, requested_by: str | None = None
    ) -> Job:
        """Cancel a queued job, or ask a running one's worker to stop; again gives the same job."""
        with self.ledger.write() as conn:
            job = jobs.get(conn, job_id, lock=True)
            if job is None:
                raise JobNotFound
            job = transitions.request_cancel(
                conn, job, reason=reason, requested_by=requested_by, now=self.clock.now()
            )
        self.index.put([job])
        return job

    def redrive(self, asked: Redrive) -> Redriven:
        """Bring back jobs that failed for good, in a new run; see ``Redriver.redrive``."""
        return self._redriver.redrive(asked)

    # -- workers -----------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> list[Job]:
        """Give a worker the best jobs it may run now, or none; see ``Claims.claim``."""
        granted = self._claims.claim(request)
        for job in granted:
            self._remember(job.id, job.queue)
        return granted

    def claim_next(self, request: ClaimRequest) -> list[Job] | None:
        """Claim for a worker that has just completed; None when that could not be tried.

        What was completed stays so, whatever becomes of the claim; a claim of its own is told why.
        """
        try:
            return self.claim(request)
        except (InvalidPayload, Unavailable) as error:
            log.warning("no next job: %s", error, extra={"worker": request.worker_id})
            return None

    def eligibility(self, request: ClaimRequest) -> Eligibility:
        """Say which lanes a claim may see, for those who wait; raises as a claim would."""
        return self._claims.eligibility(request)

    def queues_of(self, eligible: Eligibility) -> list[str]:
        """List the known queues a claim may see."""
        return self._claims.queues_of(eligible)

    def seen(self, worker_id: str) -> None:
        """Mark a worker seen now."""
        try:
            self.reservations.mark_seen(worker_id, to_ms(self.clock.now()))
        except ReservationsUnavailable as error:
            log.debug("not marked seen: %s", error, extra={"worker": worker_id})

    def hello(self, worker_id: str, info: Mapping[str, Json]) -> None:
        """Record what a worker says of itself; the last word counts."""
        with self.ledger.write() as conn:
            jobs.say_hello(conn, worker_id, info, self.clock.now())
        self.seen(worker_id)

    def ready(self) -> None:
        """Return when both stores answer and the ledger fits this code.

        Raises:
            Unavailable: one does not.
        """
        if not migrate.check(self.ledger):
            raise LedgerUnavailable("The ledger is not migrated; run `drawbridge migrate`")
        self.reservations.clock_ms()

    # -- holders -----------------------------------------------------------------------------

    def heartbeat(self, job_id: str, holder: Holder, *, lease_seconds: int) -> Heartbeat:
        """Extend a lease, in Redis alone when it knows the lease; again extends it from then."""
        try:
            renewed = self._renew(job_id, holder, lease_seconds * 1000)
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
            job, _ = transitions.held(conn, job_id, holder)
            jobs.renew(conn, job, until=until, lease_seconds=lease_seconds)
        self._remember(job.id, job.queue)
        job = replace(job, lease_expires_at=until, held_until=None, lease_seconds=lease_seconds)
        self.index.put([job], force=True)
        return Heartbeat(job=job, expires_in_s=float(lease_seconds))

    def complete(
        self,
        job_id: str,
        holder: Holder,
        *,
        result: Json = None,
        result_summary: str | None = None,
    ) -> Job:
        """End a lease with success; the same again under its lease id gives the same job."""
        digest = _digest("complete", holder, result, result_summary)
        now = self.clock.now()
        with self.ledger.write() as conn:
            job, repeated = transitions.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.complete(
                conn, job, result=result, result_summary=result_summary, digest=digest, now=now
            )
        self.index.put([job])
        return job

    def complete_many(
        self, worker_id: str, completions: Sequence[Completion]
    ) -> list[Job | DrawbridgeError]:
        """End several leases with success, in one transaction; each is answered by itself.

        One that is refused keeps no other from ending; again gives the same answers.
        """
        outcomes: dict[str, Job | DrawbridgeError] = {}
        ending: list[batches.Ending] = []
        now = self.clock.now()
        with self.ledger.write() as conn:
            found = batches.lock(conn, [one.job_id for one in completions])
            for one in completions:
                holder = Holder(worker_id=worker_id, lease_id=one.lease_id)
                digest = _digest("complete", holder, one.result, one.result_summary)
                try:
                    job, repeated = transitions.answered(
                        found.get(one.job_id), holder, digest=digest
                    )
                except DrawbridgeError as error:
                    outcomes[one.job_id] = error
                    continue
                outcomes[one.job_id] = job
                if not repeated:
                    ending.append(batches.Ending(job, one.result, one.result_summary, digest))
            done = batches.complete(conn, ending, now=now)
        self.index.put(done.values())
        return [done.get(one.job_id) or outcomes[one.job_id] for one in completions]

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
        digest = _digest("fail", holder, error, retryable, retry_after_s)
        now = self.clock.now()
        with self.ledger.write() as conn:
            job, repeated = transitions.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.fail(
                conn, job, error=error, retryable=retryable, retry_after_s=retry_after_s,
                digest=digest, now=now,
            )  # fmt: skip
        self.index.put([job])
        return job

    def release(self, job_id: str, holder: Holder, *, reason: str | None = None) -> Job:
        """Give a job back at no cost; again under its lease id gives the job as it is."""
        digest = _digest("release", holder)
        with self.ledger.write() as conn:
            job, repeated = transitions.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.release(
                conn, job, outcome="released", reason=reason, digest=digest, now=self.clock.now()
            )
        self.index.put([job])
        return job

    def cancel_ack(self, job_id: str, holder: Holder, *, message: str | None = None) -> Job:
        """Say that a cancelled job's work has stopped; again under its lease id, the same job."""
        digest = _digest("cancel_ack", holder)
        with self.ledger.write() as conn:
            job, repeated = transitions.held(conn, job_id, holder, digest=digest)
            if repeated:
                return job
            job = transitions.acknowledge_cancel(
                conn, job, message=message, digest=digest, now=self.clock.now()
            )
        self.index.put([job])
        return job

    def append_events(self, job_id: str, holder: Holder, new: Sequence[NewEvent]) -> list[Event]:
        """Append to a job's log; entries with a ``worker_seq`` sent before are answered alike."""
        with self.ledger.write() as conn:
            job, _ = transitions.held(conn, job_id, holder)
            made = events.append(conn, job, new, transitions.not_before(job, self.clock.now()))
        self._take_up(job, holder)
        return made

    def check_holder(self, job_id: str, holder: Holder) -> Job:
        """Return a job to whoever may upload to it, before any byte of the file is read.

        Raises:
            NotAuthorized: another worker holds it; otherwise as every call of a holder.
        """
        with self.ledger.read() as conn:
            return _may_upload(conn, job_id, holder)

    def add_artifact(
        self,
        job_id: str,
        holder: Holder,
        *,
        name: str,
        content_type: str | None,
        file: StoredFile,
    ) -> Artifact:
        """Name stored bytes as a file of a job; again gives the same artifact."""
        now = self.clock.now()
        with self.ledger.write() as conn:
            job = _may_upload(conn, job_id, holder, lock=True)
            artifact, new = artifacts.add(
                conn, job, name=name, content_type=content_type, file=file, now=now
            )
            if new:
                payload = {"name": name, "sizeBytes": file.size_bytes}
                events.append(
                    conn, job, [NewEvent(message="Artifact uploaded", payload=payload)], now
                )
        self._take_up(job, holder)
        return artifact

    # -- what they share ---------------------------------------------------------------------

    def _take_up(self, job: Job, holder: Holder) -> None:
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

    def _place(self, placed: Sequence[Job]) -> None:
        """Index new jobs; a queue nobody has built yet is built on the way."""
        for queue in {job.queue for job in placed}:
            try:
                self.index.ensure(queue)
            except ReservationsUnavailable as error:
                log.warning("not indexed: %s", error, extra={"action": "index", "queue": queue})
        self.index.put(placed)

    def _remember(self, job_id: str, queue: str) -> None:
        with self._lock:
            self._queue_names[job_id] = queue
            self._queues_met.add(queue)

    def _renew(self, job_id: str, holder: Holder, lease_ms: int) -> Renewed | None:
        """Renew a lease in Redis; a job new to this process is looked for in the queues it met."""
        with self._lock:
            known = self._queue_names.get(job_id)
            queues = [known] if known else sorted(self._queues_met)
        for queue in queues:
            renewed = self.reservations.renew(
                queue, job_id, lease_id=holder.lease_id, worker_id=holder.worker_id,
                lease_ms=lease_ms,
            )  # fmt: skip
            if renewed is not None:
                if known is None:
                    self._remember(job_id, queue)
                return renewed
        return None


def _may_upload(conn: sa.Connection, job_id: str, holder: Holder, *, lock: bool = False) -> Job:
    job = jobs.get(conn, job_id, lock=lock)
    if job is None:
        raise JobNotFound
    try:
        transitions.check_holder(job, holder)
    except OwnershipMismatch as error:
        if job.claimed_by == holder.worker_id:
            raise
        raise NotAuthorized("This worker does not hold the job") from error
    return job


def _digest(call: str, holder: Holder, *said: Json) -> str:
    """Return what makes two terminal calls the same one."""
    text = json.dumps([call, holder.worker_id, *said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
