"""The only way out of dead_letter and failed: which jobs are brought back, and how fast.

Oldest first, a page a transaction. A call that dies midway leaves some brought back and the rest
as they were; the same call again takes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from broker.clock import Clock
from broker.indexing import Indexer
from broker.ledger import audit
from broker.ledger import redrive as rows
from broker.ledger.engine import Ledger
from broker.records import Job
from broker.redrive_shapes import Redrive, RedriveItem, Redriven, RedriveOutcome

#: jobs brought back in one transaction
PAGE: Final = 200


class Redriver:
    """Brings back what failed for good; threads may share it."""

    def __init__(self, ledger: Ledger, *, index: Indexer, clock: Clock) -> None:
        """Stand on the stores of one process."""
        self._ledger = ledger
        self._index = index
        self._clock = clock

    def redrive(self, asked: Redrive) -> Redriven:
        """Bring back the jobs asked for; again, none of them is dead any more.

        With a rate they become ready one by one, the first at once; each call has a pace of its
        own.
        """
        started = self._clock.now()
        ids, more = self._chosen(asked, started)
        items: list[RedriveItem] = []
        matched = 0
        for at in range(0, len(ids), PAGE):
            pace = _Pace(started, asked.max_rate, matched)
            items += self._page(asked, ids[at : at + PAGE], pace)
            matched = pace.taken
        return Redriven(
            matched=matched, redriven=0 if asked.dry_run else matched, more=more,
            items=tuple(items),
        )  # fmt: skip

    def _chosen(self, asked: Redrive, now: datetime) -> tuple[Sequence[str], bool]:
        """Name the jobs meant, and whether a filter means more than it may take at once."""
        if asked.filter is None:
            return list(dict.fromkeys(asked.ids)), False
        with self._ledger.read() as conn:
            ids = rows.matching(conn, asked.filter, now=now, limit=asked.filter.limit + 1)
        return ids[: asked.filter.limit], len(ids) > asked.filter.limit

    def _page(self, asked: Redrive, ids: Sequence[str], pace: _Pace) -> list[RedriveItem]:
        """Bring back the jobs of one page, or with a dry run tell what would become of them."""
        now = self._clock.now()
        with self._ledger.read() if asked.dry_run else self._ledger.write() as conn:
            found = rows.read(conn, ids, lock=not asked.dry_run)
            verdicts = {one: _verdict(found.get(one), now) for one in ids}
            good = [one for one in ids if verdicts[one] is RedriveOutcome.MATCHED]
            due = {one: pace.next() for one in good}
            status = {one: dead.job.status for one, dead in found.items()}
            back = []
            if not asked.dry_run:
                back = rows.redrive(
                    conn, [(found[one], due[one]) for one in sorted(good)],
                    requested_by=asked.requested_by, now=now,
                )  # fmt: skip
            if back:
                audit.append(conn, _act(asked, back), now)
        self._index.put(back)
        status |= {job.id: job.status for job in back}
        verdicts |= {job.id: RedriveOutcome.REDRIVEN for job in back}
        return [RedriveItem(one, verdicts[one], status.get(one), due.get(one)) for one in ids]


def _act(asked: Redrive, back: Sequence[Job]) -> audit.Act:
    return audit.Act(
        action="jobs.redrive",
        actor=asked.requested_by or "unknown",
        source=asked.source,
        detail={"jobs": [job.id for job in back], "maxRate": asked.max_rate},
    )


class _Pace:
    """Hands out the moments at which jobs become ready."""

    def __init__(self, started: datetime, per_s: float | None, taken: int) -> None:
        self._started = started
        self._per_s = per_s
        self.taken = taken

    def next(self) -> datetime | None:
        """Return the next moment; None is at once."""
        at, self.taken = self.taken, self.taken + 1
        if self._per_s is None or at == 0:
            return None
        return self._started + timedelta(seconds=at / self._per_s)


def _verdict(dead: rows.Dead | None, now: datetime) -> RedriveOutcome:
    if dead is None:
        return RedriveOutcome.NOT_FOUND
    job = dead.job
    if not rows.may_be_redriven(job):
        return RedriveOutcome.NOT_DEAD
    if job.reason == "rejected":
        return RedriveOutcome.REJECTED
    if job.expires_at is not None and job.expires_at <= now:
        return RedriveOutcome.EXPIRED
    return RedriveOutcome.MATCHED
