"""How the ledger's truth gets into the reservations: one job, all of a queue, or what went missing.

The step after a commit is best effort: what it misses, reconcile finds.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from broker.clock import Clock, to_ms
from broker.errors import GenerationMoved, ReservationsUnavailable
from broker.ledger import jobs
from broker.ledger.engine import Ledger
from broker.policy import Lane
from broker.records import Job
from broker.reservations.store import Placement, Reservations
from broker.states import LIVE, TERMINAL, Index, Status

log = logging.getLogger(__name__)

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


def placement(job: Job, now: datetime) -> Placement:
    """Say where a live job belongs.

    A running one gets its lease anew from now: its renewals were in the index that lost it, and an
    early end would cost an attempt where a late one costs a minute.
    """
    lane = Lane.from_spec(job.lane_spec)
    common: dict[str, Any] = {
        "id": job.id, "version": job.version, "lane": lane, "member": job.member,
        "priority": job.priority,
    }  # fmt: skip
    if job.status is Status.RUNNING:
        lease_ms = (job.lease_seconds or 0) * 1000
        return Placement(
            index=Index.RESERVED, at_ms=to_ms(now) + lease_ms, lease_id=job.lease_id or "",
            worker_id=job.claimed_by or "", lease_ms=lease_ms, cancel=cancel_flag(job),
            json=dump(job), **common,
        )  # fmt: skip
    if job.next_attempt_at is not None and job.next_attempt_at > now:
        return Placement(index=Index.SCHEDULED, at_ms=to_ms(job.next_attempt_at), **common)
    return Placement(index=Index.READY, at_ms=0, **common)


class Indexer:
    """Keeps the reservations in step with the ledger."""

    def __init__(self, ledger: Ledger, reservations: Reservations, clock: Clock) -> None:
        """Use the stores of one process; threads may share it."""
        self._ledger = ledger
        self._reservations = reservations
        self._clock = clock
        self._since: datetime | None = None
        self._cursor = 0

    def put(self, changed: Iterable[Job], *, force: bool = False) -> None:
        """Place jobs as the ledger has them; drops those that have ended. Best effort."""
        for queue, some in _by_queue(changed).items():
            try:
                self._put(queue, some, force=force)
            except ReservationsUnavailable as error:
                # reconcile finds what the ledger changed while the reservations were away
                log.warning("not indexed: %s", error, extra={"action": "index", "queue": queue})

    def _put(self, queue: str, some: Sequence[Job], *, force: bool) -> int:
        now = self._clock.now()
        live = [placement(job, now) for job in some if job.status in LIVE]
        ended = [(job.id, job.version) for job in some if job.status in TERMINAL]
        changed = self._reservations.admit(queue, live, force=force) if live else 0
        return changed + (self._reservations.drop(queue, ended) if ended else 0)

    def queues(self) -> list[str]:
        """List the queues the ledger knows."""
        with self._ledger.read() as conn:
            return jobs.queue_names(conn)

    def ensure(self, queue: str) -> bool:
        """Rebuild a queue whose index is lost; False while another process is at it."""
        if self._reservations.generation(queue) is not None:
            return True
        return self.rebuild(queue)

    def rebuild(self, queue: str) -> bool:
        """Build a new generation of a queue from the ledger and make it the one that counts.

        Nobody reads it before it is whole. Running jobs come back with their lease. False when
        another process is at it; a crash midway leaves nothing that is read.
        """
        token = uuid4().hex
        if not self._reservations.start_building(queue, token):
            return False
        with self._ledger.write() as conn:
            generation = jobs.bump_generation(conn, queue)
        lanes: Counter[str] = Counter()
        last, total = 0, 0
        while page := self._live_page(queue, last):
            now = self._clock.now()
            placements = [placement(job, now) for job in page]
            self._reservations.build(queue, generation, token, placements)
            lanes.update(p.lane.key for p in placements if p.index is Index.READY)
            last, total = page[-1].seq, total + len(page)
        try:
            self._reservations.publish(queue, generation, token, lanes)
        except GenerationMoved:
            log.warning("rebuild lost", extra={"action": "rebuild", "queue": queue})
            return False
        log.info(
            "rebuilt generation %s with %s jobs", generation, total,
            extra={"action": "rebuild", "queue": queue},
        )  # fmt: skip
        return True

    def _live_page(self, queue: str, after: int) -> list[Job]:
        table = jobs.jobs
        with self._ledger.read() as conn:
            return jobs.get_many(
                conn,
                table.c.queue == queue,
                table.c.status.in_(tuple(LIVE)),
                table.c.seq > after,
                limit=PAGE,
            )

    def reconcile(self) -> dict[str, int]:
        """Compare, bounded: rebuild lost queues, place what changed lately, and a page of all.

        Returns how many queues were rebuilt and how many entries were put right.
        """
        started = self._clock.now()
        rebuilt = 0
        for queue in self.queues():
            if self._reservations.generation(queue) is None:
                rebuilt += self.rebuild(queue)
        repaired = 0
        for page in self._recent(started):
            for queue, some in _by_queue(page).items():
                repaired += self._put(queue, some, force=False)
        repaired += self._walk()
        self._since = started
        return {"rebuilt": rebuilt, "repaired": repaired}

    def _recent(self, now: datetime) -> Iterable[list[Job]]:
        """Page through what the ledger changed since the last good run."""
        table = jobs.jobs
        since = (self._since or now) - OVERLAP
        seq = 0
        while True:
            with self._ledger.read() as conn:
                page = jobs.get_many(
                    conn, table.c.updated_at >= since, table.c.seq > seq, limit=PAGE
                )
            if not page:
                return
            yield page
            seq = page[-1].seq

    def _walk(self) -> int:
        """Look at the next page of all live jobs, starting over at the end."""
        table = jobs.jobs
        with self._ledger.read() as conn:
            where: list[sa.ColumnElement[bool]] = [
                table.c.status.in_(tuple(LIVE)), table.c.seq > self._cursor,
            ]  # fmt: skip
            page = jobs.get_many(conn, *where, limit=PAGE)
        self._cursor = page[-1].seq if len(page) == PAGE else 0
        return sum(self._put(q, some, force=False) for q, some in _by_queue(page).items())


def _by_queue(some: Iterable[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = defaultdict(list)
    for job in some:
        found[job.queue].append(job)
    return found
