"""Reads over many jobs: each along its index, in order, and with nothing it does not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from broker.ledger import outbox, scans
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Job
from broker.states import Status
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new

#: what reads many rows, by the index it must go along on SQLite, where nobody gathers statistics
SCANS: dict[str, Callable[[sa.Connection, SetClock], Any]] = {
    "ix_jobs_expires_at": lambda conn, clock: scans.expired(conn, now=clock.now(), limit=9),
    "ix_jobs_cancel": lambda conn, clock: scans.ignored(conn, asked=clock.now(), limit=9),
    "ix_jobs_updated_at": lambda conn, clock: scans.changed_page(
        conn, after=(clock.now(), 0), limit=9
    ),
    "ix_jobs_status_seq": lambda conn, _: (
        scans.live_page(conn, after=0, limit=9),
        list(scans.waiting(conn, "remote", size=9)),
        list(scans.running(conn, "remote", size=9)),
    ),
}


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """Record what is sent to the database."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, text: str, parameters: Any, _x: Any, _many: Any) -> None:
        seen.append((text, parameters))

    sa.event.listen(ledger.engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(ledger.engine, "before_cursor_execute", note)


def plans(ledger: Ledger, call: Callable[[sa.Connection], object]) -> list[str]:
    """Ask SQLite how it goes about each read of a call."""
    with statements(ledger) as seen, ledger.write() as conn:
        call(conn)
    with ledger.read() as conn:
        return [
            " / ".join(
                str(row[-1]) for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", p)
            )
            for text, p in seen
            if text.startswith("SELECT")
        ]


#: PostgreSQL plans by its statistics, which a test has none of
ON_SQLITE = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@ON_SQLITE
@pytest.mark.parametrize("index", SCANS)
def test_sqlite_reads_many_along_an_index_in_its_order(ledger: Ledger, clock: SetClock, index: str):
    for plan in plans(ledger, lambda conn: SCANS[index](conn, clock)):
        assert plan.startswith(f"SEARCH jobs USING INDEX {index} ")
        assert "FOR ORDER BY" not in plan


@ON_SQLITE
def test_sqlite_takes_effects_along_its_index(ledger: Ledger, clock: SetClock, queue: JobQueue):
    queue.create(new())
    [plan] = plans(ledger, lambda conn: outbox.take(conn, owner="me", now=clock.now()))
    assert plan.startswith("SCAN outbox USING INDEX ix_outbox_open / ")
    assert "SEARCH earlier USING INDEX ix_outbox_job (job_id=? AND seq<?)" in plan
    assert "TEMP B-TREE" not in plan


def test_the_index_reads_payloads_of_running_jobs_alone(queue: JobQueue, ledger: Ledger):
    queue.create(new(payload={"mark": "a running one"}))
    [running] = claim(queue)
    waiting = queue.create(new(payload={"mark": "a waiting one"}))
    done = queue.create(new(payload={"mark": "an ended one"}))
    queue.cancel(done.id)
    with ledger.read() as conn:
        page = scans.live_page(conn, after=0, limit=9)
    assert page.jobs == [running, scans.Brief(*(getattr(waiting, n) for n in scans.Brief._fields))]
    assert page.jobs[1].member == waiting.member


def test_pages_of_live_jobs_go_by_enqueue_order_whatever_their_status(
    queue: JobQueue, ledger: Ledger
):
    made = [queue.create(new(queue="q2" if n == 4 else "remote")) for n in range(10)]
    for granted in claim(queue, max_jobs=6):
        if granted.seq % 3 == 0:
            queue.complete(granted.id, holder(granted))
    live = [job.id for job in made if queue.catalog.get(job.id).status is not Status.SUCCEEDED]
    seen, after = [], 0
    with ledger.read() as conn:
        while (page := scans.live_page(conn, after=after, limit=2)).last is not None:
            seen += [job.id for job in page.jobs]
            after = page.last.seq
    assert seen == live


def test_an_index_is_built_from_one_read_of_each_status(
    queue: JobQueue, ledger: Ledger, clock: SetClock
):
    made = [queue.create(new(queue="q2" if n == 4 else "remote")) for n in range(12)]
    granted = claim(queue, max_jobs=6)
    queue.complete(granted[0].id, holder(granted[0]))
    queue.fail(granted[1].id, holder(granted[1]), error_message="e", retryable=True)
    again = queue.catalog.get(granted[1].id)
    now = [queue.catalog.get(job.id) for job in made if job.queue == "remote"]
    with statements(ledger) as seen, ledger.read() as conn:
        waiting = [page.rows for page in scans.waiting(conn, "remote", size=2)]
        held = list(scans.running(conn, "remote", size=2))
    assert sum(text.startswith("SELECT") for text, _ in seen) == 3, "both, and the lane"
    assert [len(rows) for rows in (*waiting, *held)] == [2, 2, 2, 2, 2]
    assert {scans.Waits(*row) for rows in waiting for row in rows} == {
        scans.Waits(*(getattr(job, name) for name in scans.Waits._fields))
        for job in now if job.status is Status.QUEUED
    }  # fmt: skip
    assert again.next_attempt_at is not None
    assert sorted((job for page in held for job in page), key=lambda job: job.seq) == [
        job for job in now if job.status is Status.RUNNING
    ]


def test_pages_of_changes_miss_none_of_one_moment(queue: JobQueue, ledger: Ledger):
    for _ in range(7):
        queue.create(new())
    # all at one moment, as a batch is
    granted = claim(queue, max_jobs=5)
    seen: list[str] = []
    after = (granted[0].created_at - timedelta(seconds=1), 0)
    with ledger.read() as conn:
        while (page := scans.changed_page(conn, after=after, limit=2)).last is not None:
            seen += [job.id for job in page.jobs]
            after = (page.last.updated_at, page.last.seq)
    assert len(seen) == len(set(seen)) == 7
    assert [one for one in seen if one in {job.id for job in granted}] == [j.id for j in granted]


def test_sweeps_find_what_is_due_and_nothing_else(queue: JobQueue, ledger: Ledger, clock: SetClock):
    soon = clock.now() + timedelta(seconds=5)
    late: list[Job] = [queue.create(new(expires_at=soon)) for _ in range(3)]
    queue.create(new(expires_at=soon + timedelta(seconds=60)))
    queue.create(new())
    [asked, _] = claim(queue, max_jobs=2)
    queue.cancel(asked.id)
    clock.advance(6)
    with ledger.read() as conn:
        found = scans.expired(conn, now=clock.now(), limit=9)
        stopped = scans.ignored(conn, asked=clock.now(), limit=9)
        assert scans.ignored(conn, asked=clock.now() - timedelta(seconds=60), limit=9) == []
    assert [job.id for job in found] == [late[2].id]
    assert [job.id for job in stopped] == [asked.id]
