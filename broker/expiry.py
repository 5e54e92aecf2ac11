"""How leases end by themselves: overdue in Redis, decided in SQL, indexed again."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import sqlalchemy as sa

from broker.clock import Clock, from_ms
from broker.errors import GenerationMoved
from broker.indexing import Indexer
from broker.ledger import jobs, scans, transitions
from broker.ledger.engine import Ledger
from broker.records import Job
from broker.reservations.shapes import Due
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Index, Status


class Expiry:
    """Ends what has run out; threads may share it."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        *,
        index: Indexer,
        clock: Clock,
        settings: QueueSettings,
    ) -> None:
        """Stand on the stores of one process."""
        self._ledger = ledger
        self._reservations = reservations
        self._index = index
        self._clock = clock
        self._settings = settings

    def expire(self, *, limit: int) -> int:
        """End overdue leases and untaken grants, expired jobs and ignored cancels.

        Returns how many jobs changed. A pass that died midway is resumed after 10 s.
        """
        now = self._clock.now()
        # first what needs no reservations
        changed = self._end_expired(now, limit) + self._end_ignored(now, limit)
        for name in self._index.queues():
            # a lost index knows no deadlines, a restored one old ones: leases start anew
            if self._reservations.mark(name) is None:
                self._index.rebuild(name)
                continue
            with suppress(GenerationMoved):
                changed += self.end_due(name, limit=limit)
        return changed

    def end_due(self, queue: str, *, limit: int) -> int:
        """Ask the ledger about each overdue entry of a queue, then index whatever it says."""
        now_ms, due = self._reservations.due(queue, limit=limit)
        now = from_ms(now_ms)
        told: list[Job] = []
        untaken: set[str] = set()
        unknown: list[str] = []
        changed = 0
        for entry in due:
            with self._ledger.write() as conn:
                job = jobs.get(conn, entry.id, lock=True)
                ended = _end(conn, job, entry, now) if job is not None else None
            if job is None:
                unknown.append(entry.id)
                continue
            changed += ended is not None
            told.append(ended or job)
            if ended is None and _is_untaken(job, entry):
                untaken.add(job.id)
        self._index.put(told, force=True, untaken=untaken)
        if unknown:
            self._reservations.forget(queue, unknown)
        return changed

    def _end_expired(self, now: datetime, limit: int) -> int:
        """Cancel queued jobs whose Celery ``expires`` has passed."""
        with self._ledger.read() as conn:
            if not scans.expired(conn, now=now, limit=1):
                return 0
        with self._ledger.write() as conn:
            found = scans.expired(conn, now=now, limit=limit, lock=True)
            ended = [transitions.cancel(conn, job, now=now, reason="expired") for job in found]
        self._index.put(ended)
        return len(ended)

    def _end_ignored(self, now: datetime, limit: int) -> int:
        """End leases whose holder never acknowledged a cancel request (decision 9)."""
        asked = now - timedelta(seconds=self._settings.cancel_grace_s)
        with self._ledger.read() as conn:
            if not scans.ignored(conn, asked=asked, limit=1):
                return 0
        with self._ledger.write() as conn:
            found = scans.ignored(conn, asked=asked, limit=limit, lock=True)
            ended = [transitions.cancel(conn, job, now=now) for job in found]
        self._index.put(ended)
        return len(ended)


def _is_untaken(job: Job, entry: Due) -> bool:
    """Tell whether a grant whose confirmation was lost still waits to be taken up."""
    return (
        entry.index is Index.GRANTING
        and job.lease_id == entry.lease_id
        and job.held_until is not None
    )


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
