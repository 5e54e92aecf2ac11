"""The order of writes of a claim: hold in Redis, decide in SQL, confirm in Redis.

Redis knows who may be next; only the ledger grants. A hold without the ledger's word lapses after
10 s at no cost, a grant without confirmation is put into the index by the first heartbeat or by
reconcile.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from cachetools import LRUCache

from broker.clock import Clock, from_ms
from broker.errors import GenerationMoved, InvalidPayload, ReservationsUnavailable, Unavailable
from broker.expiry import Expiry
from broker.indexing import Indexer
from broker.job_text import dump
from broker.ledger import at_once, grants, jobs, queues, workers
from broker.ledger.engine import Ledger
from broker.ledger.grants import Terms
from broker.policy import Eligibility, merge
from broker.records import ClaimRequest, Job
from broker.reservations.shapes import Reserved
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Index

log = logging.getLogger(__name__)

#: candidates a claim may lose in the ledger before it counts as empty (decision 30)
LOSSES_MAX: Final = 5
#: overdue leases that a claim ends on its way
SWEEP: Final = 20

#: how long a claim may go by the queues that another one read, while it finds jobs in them
QUEUES_S: Final = 10.0
#: claim keys a process remembers
KEYS: Final = 10_000

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
        self._queues: list[str] = []
        self._queues_until = 0.0
        #: (worker, claim key) of claims that came here, for those that come again
        self._keys: LRUCache[tuple[str, str | None], bool] = LRUCache(KEYS)

    @staticmethod
    def eligibility(request: ClaimRequest) -> Eligibility:
        """Say which lanes a claim may see."""
        return merge(
            request.policy,
            allowed_types=request.allowed_types,
            worker_capabilities=request.worker_capabilities,
            paused=request.paused,
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
        digest = grants.digest_of(request) if request.claim_key is not None else None
        tried = self._at_hand(request, eligible)
        if tried is not None:
            granted = self._take(request, eligible, digest, tried, request.max_jobs)
            if granted:
                return granted
        # "nothing" is answered only after a look into the ledger
        found, queues, places = self._look(request, eligible, digest)
        if not found and places and queues != tried:
            found = self._take(request, eligible, digest, queues, places)
        if not found:
            # the next under this key is as good as the first: who waits tries again and again
            with self._lock:
                self._keys.pop((request.worker_id, request.claim_key), None)
        return found

    def _take(
        self,
        request: ClaimRequest,
        eligible: Eligibility,
        digest: str | None,
        queues: Sequence[str],
        places: int,
    ) -> list[Job]:
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

    def _at_hand(self, request: ClaimRequest, eligible: Eligibility) -> list[str] | None:
        """Return the queues as read a moment ago, unless the ledger must be asked first.

        It knows a worker's free places and what a key was answered. A repeat that comes by another
        edge is found out by the grant: what was held for it goes back.
        """
        key = (request.worker_id, request.claim_key)
        with self._lock:
            repeated = request.claim_key is not None and key in self._keys
            self._keys[key] = True
            if repeated or request.policy.max_concurrency is not None:
                return None
            known, left_s = self._queues, self._queues_until - time.monotonic()
        return _seen_by(eligible, known) if left_s > 0 else None

    def forget_queues(self) -> None:
        """Read the queues anew at the next claim: there may be a new one."""
        with self._lock:
            self._queues_until = 0.0

    def _look(
        self, request: ClaimRequest, eligible: Eligibility, digest: str | None
    ) -> tuple[list[Job], list[str], int]:
        """Read what the key was answered before, which queues there are, and how many may come.

        Only the grant counts for certain. But a worker without a free place would take a job out
        of the index and put it back, over and over, and wake others for it.
        """
        with self.ledger.read() as conn:
            if digest is not None:
                again = grants.replayed(conn, request, digest, self.clock.now())
                if again:
                    return again, [], 0
            places = len(grants.within_limit(conn, request, range(request.max_jobs)))
            names = queues.queue_names(conn)
        with self._lock:
            self._queues, self._queues_until = names, time.monotonic() + QUEUES_S
        return [], _seen_by(eligible, names), places

    def _by_head(self, queues: Sequence[str], eligible: Eligibility) -> list[str]:
        """Order queues by their best job; asks Redis only when there is a choice.

        All of them when none has any: an empty claim too meets what is overdue, and ends it.
        """
        if len(queues) <= 1:
            return list(queues)
        heads = []
        for queue in queues:
            head = self._indexed(queue, partial(self.reservations.head, queue, eligible))
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
                eligible,
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
        terms = Terms(request, lease_id, hold_s, digest, now)
        granted = at_once.grant(self.ledger, reserved.ids, terms)
        if not granted:
            return self._grant_or_say_why(queue, reserved, terms)
        self._confirm(queue, granted, terms)
        refused = set(reserved.ids) - {job.id for job in granted}
        if refused:
            with self.ledger.write() as conn:
                lost = grants.refused(conn, refused, now)
            self.index.put(lost, force=True)
        return granted

    def _grant_or_say_why(self, queue: str, reserved: Reserved, terms: Terms) -> list[Job]:
        """Grant, or answer what the key was answered before, or refuse it."""
        request, digest, now = terms.request, terms.digest, terms.now
        again: list[Job] = []
        granted: list[Job] = []
        refusal = None
        with self.ledger.write() as conn:
            may_claim = workers.lock_worker(conn, request.worker_id, queue, now)
            try:
                again = [] if digest is None else grants.replayed(conn, request, digest, now)
            except InvalidPayload as error:
                # a call in parallel used the key for something else; what is held goes back
                refusal = error
            if not again and refusal is None and may_claim:
                ids = grants.within_limit(conn, request, reserved.ids)
                jobs.lock_in_order(conn, ids)
                granted = grants.grant(conn, ids, terms)
            lost = grants.refused(conn, set(reserved.ids) - {job.id for job in granted}, now)
        if lost:
            self.index.put(lost, force=True)
        if refusal is not None:
            raise refusal
        if granted:
            self._confirm(queue, granted, terms)
        return again or granted

    def _confirm(self, queue: str, granted: Sequence[Job], terms: Terms) -> None:
        lease_ms, hold_s = terms.request.lease_seconds * 1000, terms.hold_s
        try:
            self.reservations.confirm(
                queue,
                [(job.id, job.version, dump(job)) for job in granted],
                lease_id=terms.lease_id,
                index=Index.RESERVED if hold_s is None else Index.GRANTING,
                hold_ms=lease_ms if hold_s is None else int(hold_s * 1000),
                lease_ms=lease_ms,
            )
        except ReservationsUnavailable as error:
            # the ledger has granted it: a heartbeat or reconcile puts it into the index
            log.warning("not confirmed: %s", error, extra={"action": "claim", "queue": queue})


def _seen_by(eligible: Eligibility, queues: Sequence[str]) -> list[str]:
    return [name for name in queues if eligible.sees(name)]
