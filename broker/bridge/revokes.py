"""What becomes of Celery's revoke: a broadcast nobody keeps, made a promise of the ledger.

A job that is here is cancelled. An id nobody knows yet is remembered for a day, and the task is
cancelled when it comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import redis

from broker.catalog import Catalog
from broker.errors import JobStateConflict
from broker.queue import JobQueue
from broker.records import Ingested

logger = logging.getLogger(__name__)

#: revoked ids that no job had, by when they were revoked, epoch s
REVOKED_TASKS: Final = "{db:}:revoked-tasks"
KEEP_S: Final = 24 * 3600
#: revokes waiting for a ledger that is away
WAITING_MAX: Final = 50_000


class Revokes:
    """Revokes heard and not yet carried out; threads may share one."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._catalog = Catalog(queue.ledger)
        self._heard: deque[str] = deque(maxlen=WAITING_MAX)
        self._lock = threading.Lock()

    def hear(self, task_ids: Iterable[str]) -> None:
        """Keep what was revoked; ``step`` carries it out."""
        self._heard.extend(task_ids)

    def step(self) -> int:
        """Carry out what was heard; returns how many.

        Raises:
            Unavailable: a store is away; what is left is tried again.
        """
        done = 0
        with self._lock:
            while self._heard:
                self._carry_out(self._heard[0])
                self._heard.popleft()
                done += 1
        return done

    def apply(self, ingested: Sequence[Ingested]) -> None:
        """Cancel those new jobs whose tasks were revoked before they came."""
        new = [one.job for one in ingested if one.outcome == "new" and one.job is not None]
        if not new:
            return
        client: Any = self._queue.reservations.client
        try:
            marks = client.zmscore(REVOKED_TASKS, [job.task_id for job in new])
        except redis.RedisError as error:
            logger.warning("revoked ids are unknown: %s", error, extra={"action": "revoke"})
            return
        for job, mark in zip(new, marks, strict=True):
            if mark is not None and mark > time.time() - KEEP_S:
                self._cancel(job.id)

    def _carry_out(self, task_id: str) -> None:
        job = self._catalog.find(task_id)
        if job is not None:
            self._cancel(job.id)
            return
        client: Any = self._queue.reservations.client
        now = time.time()
        try:
            client.zadd(REVOKED_TASKS, {task_id: now})
            client.zremrangebyscore(REVOKED_TASKS, "-inf", now - KEEP_S)
        except redis.RedisError as error:
            logger.warning("revoke of %s is not kept: %s", task_id, error)
            return
        job = self._catalog.find(task_id)  # it may have come between the two looks
        if job is not None:
            self._cancel(job.id)

    def _cancel(self, job_id: str) -> None:
        try:
            self._queue.cancel(job_id, reason="revoked", requested_by="celery")
        except JobStateConflict:
            return  # it has ended; a revoke never undoes that
        logger.info("revoked job %s", job_id, extra={"action": "revoke", "job_id": job_id})
