"""How the ledger's truth gets into the reservations: one job, all of a queue, or what went missing.

The step after a commit is best effort: what it misses, reconcile finds.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from broker.clock import Clock, from_ms, to_ms
from broker.errors import GenerationMoved, ReservationsUnavailable, Unavailable
from broker.ledger import queues, scans
from broker.ledger.engine import Ledger
from broker.policy import Lane
from broker.records import Job
from broker.reservations.shapes import Placement
from broker.reservations.store import Reservations
from broker.states import LIVE, TERMINAL, Index, Status

log = logging.getLogger(__name__)

#: what the index is told of: running jobs as a whole, others may come in brief
Indexed = Job | scans.Brief

#: rows read at once
PAGE: Final = 1000
#: how far back reconcile looks beyond its last good run: longer than any transaction takes
OVERLAP: Final = timedelta(seconds=30)

_MOMENTS: Final = tuple(
    field.name for field in fields(Job) if field.name.endswith(("_at", "_until"))
)


def dump(job: Job) -> str:
    """Write a job as JSON that only Drawbridge reads."""
    values = {field.name: getattr(job, field.name) for field in fields(Job)}
    # large, and its holder has it since the claim
    values["checkpoint"] = None
    return json.dumps(values, separators=(",", ":"), default=_moment)


def _moment(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a job")


def load(text: str) -> Job:
    """Read back what ``dump`` wrote."""
    values = json.loads(text)
    for name in _MOMENTS:
        if values[name] is not None:
            values[name] = datetime.fromisoformat(values[name])
    return Job(**values | {"status": Status(values["status"])})


def cancel_flag(job: Job) -> str:
    """Return what a heartbeat tells the holder of a cancel request; empty when there is none."""
    if job.cancel_requested_at is None:
        return ""
    return json.dumps([job.cancel_requested_at.isoformat(), job.cancel_reason])


def with_flag(job: Job, flag: str) -> Job:
    """Put a cancel request from the reservations into the job it is about."""
    if not flag:
        return job
    moment, reason = json.loads(flag)
    return replace(job, cancel_requested_at=datetime.fromisoformat(moment), cancel_reason=reason)


def placement(job: Indexed, now: datetime, *, untaken: bool = False) -> Placement:
    """Say where a live job belongs.

    A running one gets its lease anew from now: its renewals were in the index that lost it, and an
    early end would cost an attempt where a late one costs a minute. Only of an ``untaken`` one is
    it known that there were none.
    """
    lane = Lane.from_spec(job.lane_spec)
    common: dict[str, Any] = {
        "id": job.id, "version": job.version, "lane": lane, "member": job.member,
        "priority": job.priority,
    }  # fmt: skip
    if isinstance(job, Job) and job.status is Status.RUNNING:
        lease_ms = (job.lease_seconds or 0) * 1000
        index, at_ms = Index.RESERVED, to_ms(now) + lease_ms
        if untaken and job.held_until is not None:
            index, at_ms = Index.GRANTING, to_ms(job.held_until) + 1
        return Placement(
            index=index, at_ms=at_ms, lease_id=job.lease_id or "",
            worker_id=job.claimed_by or "", lease_ms=lease_ms, cancel=cancel_flag(job),
            json=dump(job), **common,
        )  # fmt: skip
    if job.next_attempt_at is not None and job.next_attempt_at > now:
        # the ledger knows microseconds: offered a moment too early, it would refuse
        return Placement(index=Index.SCHEDULED, at_ms=to_ms(job.next_attempt_at) + 1, **common)
    return Placement(index=Index.READY, at_ms=0, **common)


class Indexer:
    """Keeps the reservations in step with the ledger."""

    def __init__(self, ledger: Ledger, reservations: Reservations, clock: Clock) -> None:
        """Use the stores of one process; threads may share it."""
        self._ledger = ledger
        self._reservations = reservations
        self._clock = clock
        self._cursor = 0

    def put(
        self, changed: Iterable[Job], *, force: bool = False, untaken: Collection[str] = ()
    ) -> None:
        """Place jobs as the ledger has them; drops those that have ended. Best effort.

        ``untaken`` names grants that go on waiting to be taken up.
        """
        for queue, some in _by_queue(changed).items():
            try:
                self._put(queue, some, force=force, untaken=untaken)
            except ReservationsUnavailable as error:
                # reconcile finds what the ledger changed while the reservations were away
                log.warning("not indexed: %s", error, extra={"action": "index", "queue": queue})

    def _put(
        self,
        queue: str,
        some: Sequence[Indexed],
        *,
        force: bool = False,
        untaken: Collection[str] = (),
    ) -> int:
        now = self._clock.now()
        live = [
            placement(job, now, untaken=job.id in untaken) for job in some if job.status in LIVE
        ]
        ended = [(job.id, job.version) for job in some if job.status in TERMINAL]
        changed = self._reservations.admit(queue, live, force=force) if live else 0
        return changed + (self._reservations.drop(queue, ended) if ended else 0)

    def queues(self) -> list[str]:
        """List the queues the ledger knows."""
        with self._ledger.read() as conn:
            return queues.queue_names(conn)

    def ensure(self, queue: str) -> bool:
        """Rebuild a queue whose index is lost; False while another process is at it."""
        if self._reservations.generation(queue) is not None:
            return True
        return self.rebuild(queue)

    def rebuild(self, queue: str) -> bool:
        """Build a new generation of a queue from the ledger and make it the one that counts.

        Nobody reads it before it is whole. Running jobs come back with their lease. False when
        another process is at it; a crash midway leaves nothing that is read. What changes
        meanwhile, the next reconcile puts right: the mark says since when to look.
        """
        token = uuid4().hex
        if not self._reservations.start_building(queue, token):
            return False
        try:
            generation, total = self._build(queue, token)
        except GenerationMoved:
            log.warning("rebuild lost", extra={"action": "rebuild", "queue": queue})
            return False
        except Unavailable:
            self._reservations.stop_building(queue, token)
            raise
        log.info(
            "rebuilt generation %s with %s jobs", generation, total,
            extra={"action": "rebuild", "queue": queue},
        )  # fmt: skip
        return True

    def _build(self, queue: str, token: str) -> tuple[int, int]:
        """Fill the next generation and publish it; returns its number and how many jobs it has."""
        started = self._clock.now()
        with self._ledger.write() as conn:
            generation = queues.bump_generation(conn, queue)
        lanes: Counter[str] = Counter()
        last, total = 0, 0
        while True:
            with self._ledger.read() as conn:
                page = scans.live_page(conn, queue=queue, after=last, limit=PAGE)
            if page.last is None:
                break
            now = self._clock.now()
            placements = [placement(job, now) for job in page.jobs if job.status in LIVE]
            self._reservations.build(queue, generation, token, placements)
            lanes.update(p.lane.key for p in placements if p.index is Index.READY)
            last, total = page.last.seq, total + len(placements)
        self._reservations.publish(queue, generation, token, lanes, mark_ms=to_ms(started))
        return generation, total

    def reconcile(self) -> dict[str, int]:
        """Compare, bounded: rebuild lost queues, place what changed lately, and a page of all.

        Returns how many queues were rebuilt and how many entries were put right.
        """
        started = self._clock.now()
        rebuilt = 0
        marks: dict[str, int] = {}
        for queue in self.queues():
            mark = self._reservations.mark(queue)
            if mark is None:
                rebuilt += self.rebuild(queue)
                mark = self._reservations.mark(queue)
            if mark is not None:
                marks[queue] = mark
        repaired = self._repair(self._changed(marks, started), marks)
        repaired += self._repair(self._walked(), marks)
        for queue in marks:
            self._reservations.set_mark(queue, to_ms(started))
        return {"rebuilt": rebuilt, "repaired": repaired}

    def _repair(self, pages: Iterable[Sequence[Indexed]], queues: Collection[str]) -> int:
        """Place jobs of the queues that have an index; returns how many were not where they are."""
        return sum(
            self._put(queue, some)
            for page in pages
            for queue, some in _by_queue(page).items()
            if queue in queues
        )

    def _changed(self, marks: Mapping[str, int], now: datetime) -> Iterable[Sequence[Indexed]]:
        """Page through what the ledger changed since the oldest mark."""
        if not marks:
            return
        since = min(from_ms(min(marks.values())), now) - OVERLAP
        after = (since, 0)
        while True:
            with self._ledger.read() as conn:
                page = scans.changed_page(conn, after=after, limit=PAGE)
            if page.last is None:
                return
            yield page.jobs
            after = (page.last.updated_at, page.last.seq)

    def _walked(self) -> Iterable[Sequence[Indexed]]:
        """Look at the next page of all live jobs, starting over at the end."""
        with self._ledger.read() as conn:
            page = scans.live_page(conn, after=self._cursor, limit=PAGE)
        full = page.last is not None and len(page.jobs) == PAGE
        self._cursor = page.last.seq if full and page.last else 0
        yield page.jobs


def _by_queue(some: Iterable[Indexed]) -> dict[str, list[Indexed]]:
    found: dict[str, list[Indexed]] = defaultdict(list)
    for job in some:
        found[job.queue].append(job)
    return found
