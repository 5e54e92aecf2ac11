"""What must happen without being asked: ends of leases, due retries, repairs, forgetting.

Beat asks for it, the bridge does it from a thread of its own, and claims that meet it do it on
the way. Every pass is bounded, safe anywhere and in any number: each effect is a conditional
update, and whoever comes second finds nothing left to do.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from broker.errors import GenerationMoved
from broker.files import ArtifactStore
from broker.ledger import retention
from broker.queue import JobQueue

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

        Returns how many jobs changed.
        """
        return self._queue.expiry.expire(limit=limit)

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
        kinds = ("outbox", "artifacts", "jobs", "uploads", "files", "generations")
        removed = dict.fromkeys(kinds, 0)

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
            removed["uploads"] = self._queue.uploads.prune(files, limit=PRUNE)
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
