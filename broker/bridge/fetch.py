"""How messages leave a Redis broker: into the inbox, into the ledger, and only then forgotten."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Final

from celery import Celery

from broker.bridge.decode import Builtin, Decoder
from broker.bridge.inbox import BATCH, Inbox
from broker.bridge.revokes import Revokes
from broker.errors import Unavailable
from broker.ledger.fleet import backlog
from broker.queue import JobQueue
from broker.records import Ingested, NewJob, Rejection

logger = logging.getLogger(__name__)

#: a wait for the queue's first list, after which the others are looked at
SWEEP_S: Final = 0.03
#: between looks for inboxes whose owner is gone
RESCUE_S: Final = 2.0
#: between counts of the jobs that wait
COUNT_S: Final = 1.0


class ReadAhead:
    """Keeps the jobs of a queue below a mark, so that the broker's own queue keeps its meaning."""

    def __init__(self, queue: JobQueue, name: str, *, mark: int) -> None:
        self._queue = queue
        self._name = name
        self._mark = mark
        self._waiting = 0
        self._counted_at = float("-inf")

    def room(self) -> int:
        """Return how many more jobs may be ingested now."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_S:
            with self._queue.ledger.read() as conn:
                self._waiting = backlog(conn, self._name, limit=self._mark)
            self._counted_at = now
        return self._mark - self._waiting

    def add(self, count: int) -> None:
        """Count what was ingested since the last look."""
        self._waiting += count


class Drain:
    """Drains one queue of a Redis broker; ``step`` is run by one loop."""

    def __init__(
        self,
        app: Celery,
        queue: JobQueue,
        decoder: Decoder,
        *,
        revokes: Revokes,
        ahead: ReadAhead,
        overflow: str,
    ) -> None:
        """Drain the decoder's queue; Celery's own tasks go to the queue ``overflow``."""
        self._app = app
        self._queue = queue
        self._decoder = decoder
        self._revokes = revokes
        self._ahead = ahead
        self._overflow = overflow
        self._token = secrets.token_hex(8)
        self._connection: Any = None
        self._inbox: Inbox | None = None
        #: whether the inbox may hold what was not ingested
        self._unsettled = True
        self._rescued_at = float("-inf")
        self._busy = threading.Lock()

    def still(self) -> AbstractContextManager[Any]:
        """Hold up ingest between two batches; what was fetched before is in the ledger."""
        return self._busy

    def step(self) -> float:
        """Ingest one batch; returns how long to wait before the next.

        After a failure the inbox is read again: whatever the failure was, nothing is lost.
        """
        try:
            with self._busy:
                return self._step()
        except Unavailable:
            self._unsettled = True
            raise
        except Exception:
            self._unsettled = True
            self._drop()
            raise

    def close(self) -> None:
        """Give up the inbox; a bridge that stops cleanly leaves nothing to wait for."""
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close()
        self._drop()

    def _step(self) -> float:
        inbox = self._inbox or self._open()
        self._rescue(inbox)
        if self._unsettled:
            raws = inbox.load()
        else:
            room = self._ahead.room()
            if room <= 0:
                inbox.fetch(0)
                return SWEEP_S
            raws = self._next(inbox, min(room, BATCH))
        settled = True
        if raws:
            self._unsettled = True
            settled = self._ingest(inbox, raws)
        # An inbox whose lease lapsed meanwhile may be ours still. What was ingested, left there,
        # would be a job again after a restart, when the ledger has forgotten the first.
        self._unsettled = not settled
        return 0.0

    def _next(self, inbox: Inbox, limit: int) -> list[bytes]:
        raws = inbox.fetch(limit)
        if raws:
            return raws
        first = inbox.wait(SWEEP_S)
        if first is None:
            return []
        return [first, *(inbox.fetch(limit - 1) if limit > 1 else ())]

    def _ingest(self, inbox: Inbox, raws: list[bytes]) -> bool:
        """Order: ledger, then the inbox; a crash between the two gives duplicates, seen by id.

        False when the inbox could not be settled, because its lease had lapsed.
        """
        items: list[NewJob | Rejection] = []
        builtins: list[bytes] = []
        channel = self._connection.default_channel
        for raw in raws:
            decoded = self._decoder.redis(raw, channel)
            if isinstance(decoded, Builtin):
                builtins.append(raw)
            else:
                items.append(decoded)
        ingested = self._queue.ingest(items)
        self._revokes.apply(ingested)
        settled = inbox.settle(len(raws), builtins)
        if not settled:
            logger.warning("the lease on the inbox of %s had lapsed", self._decoder.queue)
        self._ahead.add(len(ingested))
        tell(ingested)
        return settled

    def _rescue(self, inbox: Inbox) -> None:
        now = time.monotonic()
        if now - self._rescued_at < RESCUE_S:
            return
        moved = inbox.rescue()
        self._rescued_at = now
        if moved:
            logger.warning(
                "put %d messages of a dead bridge back", moved, extra={"action": "rescue"}
            )

    def _open(self) -> Inbox:
        self._connection = self._app.connection_for_read()
        self._inbox = Inbox(
            self._connection.default_channel,
            self._decoder.queue,
            token=self._token,
            overflow=self._overflow,
        )
        return self._inbox

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._inbox = None
            connection.release()


def tell(ingested: list[Ingested]) -> None:
    """Log what needs a person's eye: rejections and conflicts."""
    for one in ingested:
        if one.outcome in {"rejected", "conflict"}:
            reason = one.job.error_message if one.job is not None else "another message came first"
            logger.warning(
                "%s task %s: %s", one.outcome, one.task_id, reason,
                extra={"action": "ingest", "task_id": one.task_id},
            )  # fmt: skip
