"""The orders of writes: SQL decides, then Redis is told; every promise of the queue is made here.

Each method first writes the ledger, in one transaction with its events and effects, and only then
the reservations. The second step is best effort: what a crash between the two leaves behind,
reconcile and the sweeps put right. The order of a claim, which begins in Redis, is in ``claims``;
those of whoever holds a job are in ``holding``.

Every call may come twice; each docstring says what the second gives.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from broker import figures
from broker.catalog import Catalog
from broker.claims import Claims
from broker.clock import Clock, to_ms
from broker.errors import (
    InvalidPayload,
    JobNotFound,
    LedgerUnavailable,
    ReservationsUnavailable,
    Unavailable,
)
from broker.expiry import Expiry
from broker.holding import Holding
from broker.indexing import Indexer
from broker.ledger import cancels, fleet, intake, jobs, orders, revisions, workers
from broker.ledger.engine import Ledger
from broker.orders import OrderBook
from broker.policy import Eligibility
from broker.records import ClaimRequest, Ingested, Job, Json, NewJob, Rejection
from broker.redrive import Redriver
from broker.redrive_shapes import Redrive, Redriven
from broker.reservations.keys import QUEUE_NAME
from broker.reservations.server import Told
from broker.reservations.store import Reservations
from broker.roster import Roster
from broker.settings import QueueSettings
from broker.uploading import Uploading

log = logging.getLogger(__name__)


class JobQueue(Holding):
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
        super().__init__(
            ledger,
            reservations,
            index=Indexer(ledger, reservations, clock),
            clock=clock,
            settings=settings,
        )
        self.catalog = Catalog(ledger)
        self.roster = Roster(ledger, reservations, clock=clock)
        self.expiry = Expiry(ledger, reservations, index=self.index, clock=clock, settings=settings)
        self._claims = Claims(
            ledger, reservations, index=self.index, expiry=self.expiry, clock=clock,
            settings=settings,
        )  # fmt: skip
        self.orders = OrderBook(ledger, reservations, clock)
        self.uploads = Uploading(self)
        self._queues_placed: set[str] = set()
        self._redriver = Redriver(ledger, index=self.index, clock=clock)

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
        self,
        job_id: str,
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        stop: bool = True,
    ) -> Job:
        """Cancel a queued job, or ask a running one's worker to stop; again gives the same job.

        Without ``stop`` a running one goes on, but has no attempt after this one.
        """
        with self.ledger.write() as conn:
            holder = orders.bump(conn, job_id)
            job = jobs.get(conn, job_id, lock=True)
            if job is None:
                raise JobNotFound
            job = cancels.request(
                conn, job, reason=reason, requested_by=requested_by, stop=stop,
                now=self.clock.now(),
            )  # fmt: skip
            standing = None if holder is None else orders.read(conn, holder)
        self.index.put([job])
        if standing is not None:
            self.orders.tell(standing)
        return job

    def redrive(self, asked: Redrive) -> Redriven:
        """Bring back jobs that failed for good, in a new run; see ``Redriver.redrive``."""
        return self._redriver.redrive(asked)

    # -- workers -----------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> list[Job]:
        """Give a worker the best jobs it may run now, or none; see ``Claims.claim``."""
        granted = self._claims.claim(request)
        for job in granted:
            self.remember(job.id, job.queue)
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

    def seen(self, worker_id: str, load: str | None = None) -> Told | None:
        """Mark a worker seen now, with the load averages of its machine as ``1,2.5,3``.

        Returns how its orders stand, when that can be known.
        """
        try:
            return self.reservations.mark_seen(worker_id, to_ms(self.clock.now()), load=load)
        except ReservationsUnavailable as error:
            log.debug("not marked seen: %s", error, extra={"worker": worker_id})
            return None

    def hello(self, worker_id: str, info: Mapping[str, Json]) -> None:
        """Record what a worker says of itself; the last word counts."""
        with self.ledger.write() as conn:
            workers.say_hello(conn, worker_id, info, self.clock.now())
        self.seen(worker_id)

    def bye(self, worker_id: str, instance_id: str) -> None:
        """Let a worker be offline at once, when its daemon stops and holds nothing any more.

        Not when a later daemon said hello under the name. Again changes nothing. While a store is
        away its silence tells the same, a minute later.
        """
        try:
            with self.ledger.read() as conn:
                held = fleet.held_by(conn, [worker_id], limit=1)
                last = fleet.known_of(conn, [worker_id], limit=0).get(worker_id)
            if not held and (
                last is None or last.hello.get("instanceId", instance_id) == instance_id
            ):
                self.reservations.mark_gone(worker_id)
        except Unavailable as error:
            log.debug("not marked gone: %s", error, extra={"worker": worker_id})

    def ready(self) -> None:
        """Return when both stores answer and the ledger fits this code.

        Raises:
            Unavailable: one does not.
        """
        if not revisions.check(self.ledger):
            raise LedgerUnavailable("The ledger is not migrated; run `drawbridge migrate`")
        self.reservations.clock_ms()

    # -- what they share ---------------------------------------------------------------------

    def _place(self, placed: Sequence[Job]) -> None:
        """Index new jobs; a queue nobody has built yet is built on the way."""
        for queue in {job.queue for job in placed}:
            if queue not in self._queues_placed:
                self._queues_placed.add(queue)
                self._claims.forget_queues()
            try:
                self.index.ensure(queue)
            except ReservationsUnavailable as error:
                log.warning("not indexed: %s", error, extra={"action": "index", "queue": queue})
        self.index.put(placed)
