"""What must happen without being asked: ends of leases, due retries, repairs, forgetting.

Beat asks for it, the bridge does it from a thread of its own, and claims that meet it do it on
the way. Every pass is bounded, safe anywhere and in any number: each effect is a conditional
update, and whoever comes second finds nothing left to do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from broker.clock import from_ms
from broker.errors import GenerationMoved
from broker.files import ArtifactStore
from broker.ledger import jobs, retention, transitions
from broker.queue import JobQueue
from broker.records import Job
from broker.reservations.store import Due
from broker.states import Index, Status

log = logging.getLogger(__name__)

#: entries per pass unless asked otherwise
LIMIT: Final = 100
#: rows a prune removes in one transaction
PRUNE: Final = 500
#: bytes without a name are left alone for as long: their upload may not be in the ledger yet
ORPHAN_AGE: Final = timedelta(days=1)


class Upkeep:
    """The sweeps over one queue service."""

    def __init__(self, queue: JobQueue) -> None:
        """Sweep what this queue service stands on."""
        self._queue = queue

    def expire(self, *, limit: int = LIMIT) -> int:
        """End overdue leases and untaken grants, expired jobs and ignored cancels.

        Returns how many jobs changed. A pass that died midway is resumed after 10 s.
        """
        changed = 0
        for name in self._queue.index.queues():
            try:
                now_ms, due = self._queue.reservations.due(name, limit=limit)
            except GenerationMoved:
                # a lost index knows no deadlines: leases start anew with the rebuild
                self._queue.index.ensure(name)
                continue
            changed += self._end_due(name, due, from_ms(now_ms))
        now = self._queue.clock.now()
        return changed + self._end_expired(now, limit) + self._end_ignored(now, limit)

    def _end_due(self, queue: str, due: Sequence[Due], now: datetime) -> int:
        """Ask the ledger about each overdue entry, then index whatever it says."""
        told: list[Job] = []
        unknown: list[str] = []
        changed = 0
        for entry in due:
            with self._queue.ledger.write() as conn:
                job = jobs.get(conn, entry.id, lock=True)
                ended = _end(conn, job, entry, now) if job is not None else None
            if job is None:
                unknown.append(entry.id)
                continue
            changed += ended is not None
            told.append(ended or job)
        self._queue.index.put(told, force=True)
        if unknown:
            self._queue.reservations.forget(queue, unknown)
        return changed

    def _end_expired(self, now: datetime, limit: int) -> int:
        """Cancel queued jobs whose Celery ``expires`` has passed."""
        table = jobs.jobs
        due = (table.c.status == Status.QUEUED, table.c.expires_at <= now)
        with self._queue.ledger.read() as conn:
            if not jobs.get_many(conn, *due, limit=1):
                return 0
        with self._queue.ledger.write() as conn:
            found = jobs.get_many(conn, *due, limit=limit, lock=True)
            ended = [transitions.cancel(conn, job, now=now, reason="expired") for job in found]
        self._queue.index.put(ended)
        return len(ended)

    def _end_ignored(self, now: datetime, limit: int) -> int:
        """End leases whose holder never acknowledged a cancel request (decision 9)."""
        table = jobs.jobs
        asked = now - timedelta(seconds=self._queue.settings.cancel_grace_s)
        due = (table.c.status == Status.RUNNING, table.c.cancel_requested_at <= asked)
        with self._queue.ledger.read() as conn:
            if not jobs.get_many(conn, *due, limit=1):
                return 0
        with self._queue.ledger.write() as conn:
            found = jobs.get_many(conn, *due, limit=limit, lock=True)
            ended = [transitions.cancel(conn, job, now=now) for job in found]
        self._queue.index.put(ended)
        return len(ended)

    def promote(self, *, limit: int = 1000) -> int:
        """Make scheduled jobs ready whose moment has come; returns how many."""
        promoted = 0
        for name in self._queue.index.queues():
            try:
                promoted += self._queue.reservations.promote(name, limit=limit)
            except GenerationMoved:
                self._queue.index.ensure(name)
        return promoted

    def reconcile(self) -> dict[str, int]:
        """Rebuild what is lost and put right what is wrong; see ``Indexer.reconcile``."""
        return self._queue.index.reconcile()

    def prune(self, *, files: ArtifactStore | None = None) -> dict[str, int]:
        """Forget what is older than it is kept, and bytes that nobody names any more.

        Returns how many rows, files and index keys went, by kind.
        """
        now, keep = self._queue.clock.now(), self._queue.settings
        removed = dict.fromkeys(("outbox", "artifacts", "jobs", "files", "generations"), 0)

        def effects_(conn: sa.Connection) -> int:
            return retention.forget_settled(conn, before=now - keep.keep_outbox, limit=PRUNE)

        def artifacts_(conn: sa.Connection) -> int:
            return retention.forget_artifacts(conn, before=now - keep.keep_artifacts, limit=PRUNE)

        def jobs_(conn: sa.Connection) -> int:
            return retention.forget_jobs(
                conn,
                before=now - keep.keep_jobs,
                dead_before=now - keep.keep_dead_letters,
                limit=PRUNE,
            )

        for kind, forget in (("outbox", effects_), ("artifacts", artifacts_), ("jobs", jobs_)):
            gone = PRUNE
            while gone == PRUNE:
                with self._queue.ledger.write() as conn:
                    gone = forget(conn)
                removed[kind] += gone
        if files is not None:
            removed["files"] = self._prune_files(files, now - ORPHAN_AGE)
        for name in self._queue.index.queues():
            current = self._queue.reservations.generation(name)
            if current is not None:
                removed["generations"] += self._queue.reservations.sweep_generations(name, current)
        return removed

    def _prune_files(self, files: ArtifactStore, before: datetime) -> int:
        removed = files.sweep(before=before)
        paths = list(files.stored(before=before))
        for at in range(0, len(paths), PRUNE):
            with self._queue.ledger.read() as conn:
                orphans = retention.unnamed(conn, paths[at : at + PRUNE])
            removed += sum(files.discard(path, before=before) for path in orphans)
        return removed


def _end(conn: sa.Connection, job: Job, entry: Due, now: datetime) -> Job | None:
    """End the lease of an overdue entry if the ledger agrees that it has run out."""
    if job.status is not Status.RUNNING or job.lease_id != entry.lease_id:
        return None
    if entry.index is Index.GRANTING and job.held_until is not None:
        if job.held_until > now:
            return None
        return transitions.release(conn, job, outcome="undelivered", now=now)
    if job.lease_expires_at is not None and job.lease_expires_at > now:
        return None
    return transitions.lose(conn, job, now=now)
