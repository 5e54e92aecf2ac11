"""Orders to workers: written to the ledger, then told to every edge; none is ever lost.

An order is not a message but how things stand: drain or not, how many slots, which queues to leave
alone, which jobs to stop. A worker that missed some reads all of it at once, and reading it twice
changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from broker.clock import Clock
from broker.errors import ReservationsUnavailable, WorkerNotFound
from broker.ledger import audit, orders
from broker.ledger.audit import Act
from broker.ledger.engine import Ledger
from broker.records import Orders
from broker.reservations.server import Told
from broker.reservations.store import Reservations

#: who is named in the audit when nobody said
UNKNOWN: Final = "unknown"

log = logging.getLogger(__name__)


class OrderBook:
    """Gives orders and reads them; threads may share it."""

    def __init__(self, ledger: Ledger, reservations: Reservations, clock: Clock) -> None:
        """Use the stores of one process."""
        self._ledger = ledger
        self._reservations = reservations
        self._clock = clock

    def read(self, worker_id: str, *, after: int = -1) -> Orders:
        """Read how a worker's orders stand; a cursor beyond ``after`` means that some are new."""
        with self._ledger.read() as conn:
            return orders.read(conn, worker_id, after=after)

    def drain(self, worker_id: str, *, by: str = UNKNOWN, source: str | None = None) -> Orders:
        """Let a worker finish what it runs and claim no more; a repeat changes nothing."""
        standing = self._known(worker_id)
        if standing.drain:
            return standing
        act = Act(action="worker.drain", actor=by, source=source, object=worker_id)
        return self._change(act, {"draining_at": self._clock.now()})

    def resume(self, worker_id: str, *, by: str = UNKNOWN, source: str | None = None) -> Orders:
        """Let a worker claim again; a repeat changes nothing."""
        standing = self._known(worker_id)
        if not standing.drain:
            return standing
        act = Act(action="worker.resume", actor=by, source=source, object=worker_id)
        return self._change(act, {"draining_at": None})

    def set_concurrency(
        self,
        worker_id: str,
        concurrency: int | None,
        *,
        by: str = UNKNOWN,
        source: str | None = None,
    ) -> Orders:
        """Say how many jobs a worker may run at once; None leaves it to the worker's owner."""
        standing = self._known(worker_id)
        if standing.concurrency == concurrency:
            return standing
        detail = {"before": standing.concurrency, "after": concurrency}
        act = Act(
            action="worker.concurrency", actor=by, source=source, object=worker_id, detail=detail
        )
        return self._change(act, {"concurrency": concurrency})

    def pause(
        self, worker_id: str, queue: str, *, by: str = UNKNOWN, source: str | None = None
    ) -> Orders:
        """Let a worker claim nothing more from one queue; a repeat changes nothing."""
        return self._pause(worker_id, queue, paused=True, by=by, source=source)

    def unpause(
        self, worker_id: str, queue: str, *, by: str = UNKNOWN, source: str | None = None
    ) -> Orders:
        """Let a worker claim from a queue again; a repeat changes nothing."""
        return self._pause(worker_id, queue, paused=False, by=by, source=source)

    def tell(self, standing: Orders) -> None:
        """Let the edges know; best effort, for whoever missed it reads the ledger in time."""
        told = Told(standing.cursor, standing.drain)
        try:
            self._reservations.tell(standing.worker_id, told)
        except ReservationsUnavailable as error:
            worker = standing.worker_id
            log.warning("not told: %s", error, extra={"action": "orders", "worker": worker})

    def _known(self, worker_id: str) -> Orders:
        if not worker_id.isprintable():  # PostgreSQL takes no U+0000, and no worker has one
            raise WorkerNotFound
        with self._ledger.read() as conn:
            if not orders.is_known(conn, worker_id):
                raise WorkerNotFound
            return orders.read(conn, worker_id)

    def _pause(
        self, worker_id: str, queue: str, *, paused: bool, by: str, source: str | None
    ) -> Orders:
        standing = self._known(worker_id)
        if (queue in standing.paused) is paused:
            return standing
        act = Act(
            action="worker.pause" if paused else "worker.unpause",
            actor=by, source=source, object=worker_id, detail={"queue": queue},
        )  # fmt: skip
        return self._write(act, partial(orders.pause, queue=queue, paused=paused))

    def _change(self, act: Act, values: Mapping[str, Any]) -> Orders:
        return self._write(act, partial(orders.change, values=values))

    def _write(self, act: Act, order: Callable[..., Orders]) -> Orders:
        now = self._clock.now()
        with self._ledger.write() as conn:
            standing = order(conn, str(act.object), now=now)
            audit.append(conn, act, now)
        self.tell(standing)
        return standing
