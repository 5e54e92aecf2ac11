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
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa

from broker.clock import Clock, from_ms
from broker.errors import GenerationMoved, InvalidPayload, ReservationsUnavailable
from broker.expiry import Expiry
from broker.indexing import Indexer, dump
from broker.ledger import jobs, transitions
from broker.ledger.engine import Ledger
from broker.policy import Eligibility, merge
from broker.records import ClaimRequest, Job
from broker.reservations.store import Reservations, Reserved
from broker.settings import QueueSettings
from broker.states import Index

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
        known = self.index.queues()
        return [name for name in known if eligible.queues is None or name in eligible.queues]

    def claim(self, request: ClaimRequest) -> list[Job]:
        """Give a worker the best jobs it may run now, or none; never waits.

        The same claim key within its lease gives the same jobs under the same lease, also to
        calls in parallel and after a flush: the ledger keeps it. Another request under that key is
        refused.
        """
        eligible = self.eligibility(request)
        digest = _digest(request) if request.claim_key is not None else None
        if digest is not None and (again := self._replay(request, digest)):
            return again
        queues = self.queues_of(eligible)
        for _ in range(LOSSES_MAX):
            queue = self._best_queue(queues, eligible)
            if queue is None:
                return []
            lease_id = secrets.token_hex(16)
            reserved = self._reserve(queue, eligible, request, lease_id)
            if not reserved.ids:
                return []
            granted = self._grant(queue, reserved, request, lease_id, digest)
            if granted:
                return granted
        return []

    def _replay(self, request: ClaimRequest, digest: str) -> list[Job]:
        with self.ledger.read() as conn:
            return _replayed(conn, request, digest, self.clock.now())

    def _best_queue(self, queues: Sequence[str], eligible: Eligibility) -> str | None:
        """Pick the queue whose best job comes first; asks Redis only when there is a choice."""
        if len(queues) <= 1:
            return queues[0] if queues else None
        heads = []
        for queue in queues:
            head = self._indexed(queue, partial(self.reservations.head, queue, eligible.allows))
            if head is not None:
                heads.append((head, queue))
        return min(heads)[1] if heads else None

    def _reserve(
        self, queue: str, eligible: Eligibility, request: ClaimRequest, lease_id: str
    ) -> Reserved:
        reserved = self._indexed(
            queue,
            lambda: self.reservations.reserve(
                queue,
                eligible.allows,
                lease_id=lease_id,
                worker_id=request.worker_id,
                limit=request.max_jobs,
            ),
        )
        if reserved.overdue and self._may_sweep():
            self.expiry.end_due(queue, limit=SWEEP)
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
        with self.ledger.write() as conn:
            jobs.lock_worker(conn, request.worker_id, now)
            again = _replayed(conn, request, digest, now) if digest is not None else []
            ids = () if again else self._within_limit(conn, request, reserved.ids)
            granted = transitions.grant(
                conn, ids, request, lease_id=lease_id, hold_s=hold_s, digest=digest, now=now
            )
            lost = jobs.by_ids(conn, sorted(set(reserved.ids) - {job.id for job in granted}))
        if lost:
            self.index.put(lost, force=True)
        if granted:
            self._confirm(queue, granted, lease_id, hold_s, request.lease_seconds)
        return again or granted

    @staticmethod
    def _within_limit(
        conn: sa.Connection, request: ClaimRequest, ids: Sequence[str]
    ) -> Sequence[str]:
        """Cut to the worker's free places; its row is locked, so nobody else fills them."""
        most = request.policy.max_concurrency
        if most is None:
            return ids
        return ids[: max(0, most - jobs.running_of(conn, request.worker_id))]

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
    known = jobs.claimed_under(conn, request.worker_id, request.claim_key or "", now)
    if any(other != digest for _, _, other in known):
        raise InvalidPayload("Idempotency-Key was used for another claim")
    leases = {job_id: lease_id for job_id, lease_id, _ in known}
    found = jobs.by_ids(conn, list(leases))
    # a lease that has ended since is named all the same: its holder learns it at the first call
    return [job if job.lease_id else replace(job, lease_id=leases[job.id]) for job in found]


def _digest(request: ClaimRequest) -> str:
    said = [
        request.lease_seconds, request.allowed_types, request.worker_capabilities,
        request.max_jobs, request.instance_id,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
