"""The order of writes of a claim: hold in Redis, decide in SQL, confirm in Redis.

Redis knows who may be next; only the ledger grants. A hold without the ledger's word lapses after
10 s at no cost, a grant without confirmation is put into the index by the first heartbeat or by
reconcile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Final, TypeVar

import sqlalchemy as sa

from broker.clock import Clock, from_ms
from broker.errors import GenerationMoved, InvalidPayload, ReservationsUnavailable, Unavailable
from broker.expiry import Expiry
from broker.indexing import Indexer, dump
from broker.ledger import attempts, grants, jobs, queues, transitions, workers
from broker.ledger.engine import Ledger
from broker.policy import Eligibility, merge
from broker.records import ClaimRequest, Job
from broker.reservations.shapes import Reserved
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Index, Status

log = logging.getLogger(__name__)

#: candidates a claim may lose in the ledger before it counts as empty (decision 30)
LOSSES_MAX: Final = 5
#: overdue leases that a claim ends on its way
SWEEP: Final = 20

T = TypeVar("T")


class Claims:
    """Answers claims; threads may share it."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        *,
        index: Indexer,
        expiry: Expiry,
        clock: Clock,
        settings: QueueSettings,
    ) -> None:
        """Stand on the stores of one process."""
        self.ledger = ledger
        self.reservations = reservations
        self.index = index
        self.expiry = expiry
        self.clock = clock
        self.settings = settings
        self._lock = threading.Lock()
        self._next_sweep = 0.0

    @staticmethod
    def eligibility(request: ClaimRequest) -> Eligibility:
        """Say which lanes a claim may see."""
        return merge(
            request.policy,
            allowed_types=request.allowed_types,
            worker_capabilities=request.worker_capabilities,
        )

    def queues_of(self, eligible: Eligibility) -> list[str]:
        """List the known queues a claim may see."""
        return _seen_by(eligible, self.index.queues())

    def claim(self, request: ClaimRequest) -> list[Job]:
        """Give a worker the best jobs it may run now, or none; never waits.

        The same claim key within its lease gives the same jobs under the same lease, also to
        calls in parallel and after a flush: the ledger keeps it. Another request under that key is
        refused.
        """
        eligible = self.eligibility(request)
        digest = _digest(request) if request.claim_key is not None else None
        again, queues, places = self._look(request, eligible, digest)
        if again or not places:
            return again
        for _ in range(LOSSES_MAX):
            lease_id = secrets.token_hex(16)
            for queue in self._by_head(queues, eligible):
                reserved = self._reserve(queue, eligible, request, lease_id, places)
                if reserved.ids:
                    break
            else:
                return []
            granted = self._grant(queue, reserved, request, lease_id, digest)
            if granted:
                return granted
        return []

    def _look(
        self, request: ClaimRequest, eligible: Eligibility, digest: str | None
    ) -> tuple[list[Job], list[str], int]:
        """Read what the key was answered before, which queues there are, and how many may come.

        Only the grant counts for certain. But a worker without a free place would take a job out
        of the index and put it back, over and over, and wake others for it.
        """
        with self.ledger.read() as conn:
            if digest is not None:
                again = _replayed(conn, request, digest, self.clock.now())
                if again:
                    return again, [], 0
            places = len(self._within_limit(conn, request, range(request.max_jobs)))
            return [], _seen_by(eligible, queues.queue_names(conn)), places

    def _by_head(self, queues: Sequence[str], eligible: Eligibility) -> list[str]:
        """Order queues by their best job; asks Redis only when there is a choice.

        All of them when none has any: an empty claim too meets what is overdue, and ends it.
        """
        if len(queues) <= 1:
            return list(queues)
        heads = []
        for queue in queues:
            head = self._indexed(queue, partial(self.reservations.head, queue, eligible.allows))
            if head is not None:
                heads.append((head, queue))
        return [queue for _, queue in sorted(heads)] or list(queues)

    def _reserve(
        self,
        queue: str,
        eligible: Eligibility,
        request: ClaimRequest,
        lease_id: str,
        limit: int,
    ) -> Reserved:
        reserved = self._indexed(
            queue,
            lambda: self.reservations.reserve(
                queue,
                eligible.allows,
                lease_id=lease_id,
                worker_id=request.worker_id,
                limit=limit,
            ),
        )
        if reserved.overdue and self._may_sweep():
            try:
                self.expiry.end_due(queue, limit=SWEEP)
            except Unavailable as error:
                # done for others: what is held already must not lapse for it
                log.warning("not swept: %s", error, extra={"action": "claim", "queue": queue})
        return reserved

    def _may_sweep(self) -> bool:
        """Let one claim a second do what beat should have done."""
        now = time.monotonic()
        with self._lock:
            due = now >= self._next_sweep
            if due:
                self._next_sweep = now + 1.0
        return due

    def _indexed(self, queue: str, call: Callable[[], T]) -> T:
        """Ask the reservations, rebuilding a lost index once on the way."""
        try:
            return call()
        except GenerationMoved:
            if not self.index.ensure(queue):
                raise
            return call()

    def _grant(
        self,
        queue: str,
        reserved: Reserved,
        request: ClaimRequest,
        lease_id: str,
        digest: str | None,
    ) -> list[Job]:
        """Let the ledger decide about what was reserved; what it refuses goes where it belongs."""
        now = from_ms(reserved.now_ms)
        hold_s = min(request.lease_seconds, self.settings.hold_s) if request.held else None
        again: list[Job] = []
        granted: list[Job] = []
        refusal = None
        with self.ledger.write() as conn:
            may_claim = workers.lock_worker(conn, request.worker_id, now)
            try:
                again = [] if digest is None else _replayed(conn, request, digest, now)
            except InvalidPayload as error:
                # a call in parallel used the key for something else; what is held goes back
                refusal = error
            if not again and refusal is None and may_claim:
                ids = self._within_limit(conn, request, reserved.ids)
                jobs.lock_in_order(conn, ids)
                granted = grants.grant(
                    conn, ids, request, lease_id=lease_id, hold_s=hold_s, digest=digest, now=now
                )
            lost = _refused(conn, set(reserved.ids) - {job.id for job in granted}, now)
        if lost:
            self.index.put(lost, force=True)
        if refusal is not None:
            raise refusal
        if granted:
            self._confirm(queue, granted, lease_id, hold_s, request.lease_seconds)
        return again or granted

    @staticmethod
    def _within_limit(conn: sa.Connection, request: ClaimRequest, ids: Sequence[T]) -> Sequence[T]:
        """Cut to the worker's free places; its row is locked, so nobody else fills them."""
        most = request.policy.max_concurrency
        if most is None:
            return ids
        return ids[: max(0, most - workers.running_of(conn, request.worker_id))]

    def _confirm(
        self,
        queue: str,
        granted: Sequence[Job],
        lease_id: str,
        hold_s: float | None,
        lease_seconds: int,
    ) -> None:
        lease_ms = lease_seconds * 1000
        try:
            self.reservations.confirm(
                queue,
                [(job.id, job.version, dump(job)) for job in granted],
                lease_id=lease_id,
                index=Index.RESERVED if hold_s is None else Index.GRANTING,
                hold_ms=lease_ms if hold_s is None else int(hold_s * 1000),
                lease_ms=lease_ms,
            )
        except ReservationsUnavailable as error:
            # the ledger has granted it: a heartbeat or reconcile puts it into the index
            log.warning("not confirmed: %s", error, extra={"action": "claim", "queue": queue})


def _replayed(conn: sa.Connection, request: ClaimRequest, digest: str, now: datetime) -> list[Job]:
    """Read what this claim key was answered within its lease.

    Raises:
        InvalidPayload: the key came with another request.
    """
    claimed = attempts.claimed_under(conn, request.worker_id, request.claim_key or "", now)
    if any(one.digest != digest for one in claimed):
        raise InvalidPayload("Idempotency-Key was used for another claim")
    # the newest of a job that came back under the same key
    newest = {one.job_id: one for one in sorted(claimed, key=attrgetter("fence"))}
    found = jobs.by_ids(conn, list(newest))
    # A lease that has ended since is named all the same: its holder learns it at the first call.
    # The one that is open now is another's, though it may be of another claim of this worker.
    return [
        replace(
            job, claimed_by=request.worker_id, lease_id=newest[job.id].lease_id,
            fence=newest[job.id].fence, attempt=newest[job.id].attempt,
        )
        for job in _in_order(found)
    ]  # fmt: skip


def _in_order(some: Iterable[Job]) -> list[Job]:
    """Sort as claims give them: priority, then enqueue order."""
    return sorted(some, key=lambda job: (-job.priority, job.seq))


def _refused(conn: sa.Connection, ids: Iterable[str], now: datetime) -> list[Job]:
    """Read what the ledger did not grant, ending what expired while it waited.

    Put back as it is, an expired job would be the first to be offered again.
    """
    lost = {job.id: job for job in jobs.by_ids(conn, sorted(ids))}
    expired = [
        job.id
        for job in lost.values()
        if job.status is Status.QUEUED and job.expires_at is not None and job.expires_at <= now
    ]
    if expired:
        table = jobs.jobs
        due = (table.c.id.in_(expired), table.c.status == Status.QUEUED)
        for job in jobs.get_many(conn, *due, lock=True):
            lost[job.id] = transitions.cancel(conn, job, now=now, reason="expired")
    return list(lost.values())


def _seen_by(eligible: Eligibility, queues: Sequence[str]) -> list[str]:
    return [name for name in queues if eligible.queues is None or name in eligible.queues]


def _digest(request: ClaimRequest) -> str:
    said = [
        request.lease_seconds, request.allowed_types, request.worker_capabilities,
        request.max_jobs, request.instance_id,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
