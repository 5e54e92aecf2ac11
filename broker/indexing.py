"""How the ledger's truth gets into the reservations: one job, all of a queue, or what went missing.

The step after a commit is best effort: what it misses, reconcile finds.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

from broker.clock import Clock, from_ms, to_ms
from broker.errors import GenerationMoved, ReservationsUnavailable, Unavailable
from broker.job_text import cancel_flag, dump
from broker.ledger import queues, scans
from broker.ledger.engine import Ledger
from broker.policy import Lane
from broker.records import Job
from broker.reservations.shapes import Placement, Sheaf
from broker.reservations.store import Reservations
from broker.states import LIVE, TERMINAL, Index, Status

log = logging.getLogger(__name__)

#: what the index is told of: running jobs as a whole, others may come in brief
Indexed = Job | scans.Brief

T = TypeVar("T")

#: rows read at once
PAGE: Final = 1000
#: lanes whose heads a reconcile looks at
LANES: Final = 500
#: how far back reconcile looks beyond its last good run: longer than any transaction takes
OVERLAP: Final = timedelta(seconds=30)


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


def _sheaves(page: Iterable[Sequence[Any]], now: datetime) -> list[Sheaf]:
    """Say the same of queued jobs, each as ``scans.Waits``."""
    alike: dict[tuple[str, int, int, int | str], list[str]] = defaultdict(list)
    for job_id, seq, version, priority, lane, moment in page:
        due_ms = to_ms(moment) + 1 if moment is not None and moment > now else ""
        alike[lane, -priority, version, due_ms].append(f"{seq:016d}:{job_id}")
    return [Sheaf(*key, members) for key, members in alike.items()]


def _while_reading(calls: Iterable[tuple[int, Callable[[], None]]]) -> int:
    """Make calls in their order, each while the next is read; returns for how many jobs."""
    total = 0
    with ThreadPoolExecutor(1, "rebuild") as behind:
        made: Future[None] | None = None
        for size, call in calls:
            if made is not None:
                made.result()
            total += size
            if size == PAGE:
                made = behind.submit(call)
            else:
                # most queues are small, and need no thread
                call()
                made = None
        if made is not None:
            made.result()
    return total


class Indexer:
    """Keeps the reservations in step with the ledger."""

    def __init__(self, ledger: Ledger, reservations: Reservations, clock: Clock) -> None:
        """Use the stores of one process; threads may share it."""
        self._ledger = ledger
        self._reservations = reservations
        self._clock = clock
        self._cursor = 0
        self._lanes_seen: dict[str, int] = {}

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
        # closed here: its transaction ends also when what it yields meets an error
        with closing(self._calls(queue, generation, token, lanes)) as calls:
            total = _while_reading(calls)
        self._reservations.publish(queue, generation, token, lanes, mark_ms=to_ms(started))
        return generation, total

    def _calls(
        self, queue: str, generation: int, token: str, lanes: Counter[str]
    ) -> Generator[tuple[int, Callable[[], None]]]:
        """Read what a generation has, and yield the calls that put it there, each for how many."""
        where = (queue, generation, token)
        for page in self._pages(partial(scans.waiting, queue=queue)):
            sheaves = _sheaves(page.rows, self._clock.now())
            for one in sheaves:
                lanes[one.lane] += len(one.members) if one.due_ms == "" else 0
            fill = partial(self._reservations.fill, *where, sheaves, specs=page.specs)
            yield len(page.rows), fill
        # a job that was given meanwhile comes twice; the later word counts
        for held in self._pages(partial(scans.running, queue=queue)):
            placements = [placement(job, self._clock.now()) for job in held]
            yield len(held), partial(self._reservations.build, *where, placements)

    def _pages(self, read: Callable[..., Generator[T]]) -> Generator[T]:
        """Read page by page; of a small queue no transaction is open beside a call of Redis."""
        before: T | None = None
        with self._ledger.read() as conn, closing(read(conn, size=PAGE)) as pages:
            for page in pages:
                if before is not None:
                    yield before
                before = page
        if before is not None:
            yield before

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
            repaired += self._mend(queue)
            self._reservations.set_mark(queue, to_ms(started))
        return {"rebuilt": rebuilt, "repaired": repaired}

    def _mend(self, queue: str) -> int:
        """Look at the next heads of lanes, starting over at the end; returns how many were wrong.

        One that is missing hides its lane from claims.
        """
        at = self._lanes_seen.get(queue, 0)
        mended, self._lanes_seen[queue] = self._reservations.mend(queue, at=at, limit=LANES)
        return mended

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
