"""What ``purge`` means for a bridged queue: what was read ahead goes as well.

Celery's own ``purge`` tells nobody: it empties the broker's queue, which may be empty already. So
the bridge has a control command of that name. It empties the broker's queue, and then cancels the
tasks of this queue that no worker has been given yet; whoever waits for one is told so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from celery import Celery
from celery.worker.control import Panel, control_command

from broker.errors import JobStateConflict, Unavailable
from broker.ledger import scans
from broker.queue import JobQueue
from broker.records import Json

logger = logging.getLogger(__name__)

#: jobs named at once
PAGE: Final = 200


class Purges:
    """Purges heard and not yet carried out; threads may share one."""

    def __init__(self, app: Celery, queue: JobQueue, *, queues: tuple[str, ...]) -> None:
        """Purge these queues and no others."""
        self._app = app
        #: what holds up the ingest of a queue, and ends with nothing of it on its way to us
        self.still: dict[str, Callable[[], AbstractContextManager[Any]]] = {}
        self._queue = queue
        self._queues = queues
        #: up to which job each queue is to be emptied
        self._heard: dict[str, int] = {}
        self._lock = threading.Lock()

    def hear(self, name: str) -> Json:
        """Empty the broker's queue and note what was read ahead; returns what Celery is answered.

        What is sent after the answer stays.
        """
        if name not in self._queues:
            return {"error": f"{name!r} is not bridged here; {', '.join(self._queues)} is"}
        still = self.still.get(name, nullcontext)
        with still(), self._app.connection_for_write() as connection:
            channel = connection.default_channel
            ready = int(channel.queue_purge(name) or 0)
        try:
            with self._queue.ledger.read() as conn:
                last, ahead = scans.read_ahead(conn, name)
        except Unavailable as error:
            return {"error": f"{ready} purged from the broker, nothing of the ledger: {error}"}
        with self._lock:
            self._heard[name] = max(last, self._heard.get(name, 0))
        return {"ok": f"{ready} purged from the broker, {ahead} read ahead will be cancelled"}

    def step(self) -> int:
        """Carry out what was heard; returns how many were cancelled.

        Raises:
            Unavailable: a store is away; what is left is tried again.
        """
        cancelled = 0
        for name, last in list(self._heard.items()):
            while found := self._page(name, last):
                cancelled += sum(self._cancel(one) for one in found)
            with self._lock:
                if self._heard.get(name) == last:
                    del self._heard[name]
        if cancelled:
            logger.info("purged %d jobs", cancelled, extra={"action": "purge"})
        return cancelled

    def _page(self, name: str, last: int) -> list[str]:
        with self._queue.ledger.read() as conn:
            return scans.read_ahead_page(conn, name, last=last, limit=PAGE)

    def _cancel(self, job_id: str) -> bool:
        try:
            self._queue.cancel(job_id, reason="purged", requested_by="celery")
        except JobStateConflict:
            return False  # a worker was faster, and has ended it
        return True


def listen_for_purges() -> None:
    """Give Celery's workers of this process the command ``purge``, with the name of a queue."""

    def purge(state: Any, queue: str, **_: Any) -> Json:
        """Empty a bridged queue, and cancel what the bridge has read ahead of it."""
        said: Json = state.app.drawbridge.purges.hear(queue)
        return said

    if "purge" not in Panel.data:
        control_command(args=[("queue", str)], signature="<queue>")(purge)
