"""What holds when many do it at once: real processes and threads, on both databases."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Final

import pytest
import sqlalchemy as sa

from broker.queue import JobQueue
from broker.records import Holder, NewEvent
from broker.states import Index, Status
from broker.upkeep import Upkeep
from tests.contract.parallel_child import claim, open_queue
from tests.contract.test_claims import index_of
from tests.contract.test_queue import new
from tests.processes import until

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 90

AtOnce = Callable[..., list[Any]]


@pytest.fixture
def queue(ledger_url: str, valkey_url: str) -> Iterator[JobQueue]:
    """Give the queue of this process, on stores that others can open."""
    made = open_queue(ledger_url, valkey_url)
    yield made
    made.reservations.close()
    made.ledger.close()


class Crew:
    """Processes that take orders; kept from test to test, for a start takes a second each."""

    def __init__(self) -> None:
        self.members: list[Popen[str]] = []

    def muster(self, number: int) -> list[Popen[str]]:
        """Return as many as asked for."""
        while len(self.members) < number:
            argv = [sys.executable, "-m", "tests.contract.parallel_child"]
            self.members.append(
                Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, cwd=ROOT)
            )
        return self.members[:number]

    def dismiss(self) -> None:
        """End them all."""
        for child in self.members:
            child.kill()
            child.communicate()
        self.members.clear()


def tell(child: Popen[str], line: str) -> None:
    """Write a line to a child."""
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def hear(child: Popen[str]) -> str:
    """Read a line of a child; when it died, say of what."""
    assert child.stdout is not None
    return child.stdout.readline() or pytest.fail(child.communicate()[1])


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Give the processes of this module."""
    made = Crew()
    yield made
    made.dismiss()


@pytest.fixture
def start(crew: Crew, ledger_url: str, valkey_url: str) -> Callable[..., list[Popen[str]]]:
    """Start actions in processes and threads, all at once."""

    def run(*actions: str, processes: int, threads: int, what: Any = None) -> list[Popen[str]]:
        mine = crew.muster(processes)
        for number, child in enumerate(mine):
            order = {
                "action": actions[number % len(actions)], "database": ledger_url,
                "redis": valkey_url, "me": f"p{number}", "threads": threads, "what": what,
            }  # fmt: skip
            tell(child, json.dumps(order))
        for child in mine:
            assert hear(child) == "ready\n"
        for child in mine:
            tell(child, "go")
        return mine

    return run


@pytest.fixture
def at_once(start: Callable[..., list[Popen[str]]]) -> AtOnce:
    """Run actions, and answer what each thread of each process returned."""

    def run(*actions: str, **how: Any) -> list[Any]:
        return [said for child in start(*actions, **how) for said in json.loads(hear(child))]

    return run


def test_one_key_gets_one_lease_however_many_ask(queue: JobQueue, at_once: AtOnce):
    # as many as all of them hold at once, so that each gets as far as the ledger
    created = [one.job for one in queue.ingest([new() for _ in range(64)]) if one.job]
    answers = at_once("same_key", processes=2, threads=16)
    assert len(answers) == 32
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 2
    held = {job_id for job_id, *_ in answers[0]}
    for job in created:
        assert len(queue.catalog.attempts(job.id)) == (job.id in held)
        # what the others had in hand went back at once
        expected = Index.GRANTING if job.id in held else Index.READY
        assert index_of(queue.reservations, job) == [expected]


def test_one_key_and_one_job_make_one_lease(queue: JobQueue, at_once: AtOnce):
    job = queue.create(new())
    answers = at_once("same_key", processes=2, threads=8)
    [attempt] = queue.catalog.attempts(job.id)
    # whoever came between the hold and the grant was told "nothing yet"
    assert {tuple(one[0]) for one in answers if one} == {
        (job.id, attempt.lease_id, 1, "running"),
    }  # fmt: skip
    assert at_once("same_key", processes=1, threads=1) == [max(answers)]


@pytest.mark.parametrize("queues", [1, 2])
def test_as_many_claims_as_jobs_all_get_one(queue: JobQueue, at_once: AtOnce, queues: int):
    created = [queue.create(new(queue=f"q{number % queues}")) for number in range(16)]
    got = at_once("one_each", processes=2, threads=8)
    assert sorted(got) == sorted([job.id] for job in created)


def test_a_worker_never_holds_more_than_it_may(queue: JobQueue, at_once: AtOnce):
    for _ in range(20):
        queue.create(new())
    got = at_once("limited", processes=2, threads=8, what=3)
    assert sum(len(jobs) for jobs in got) == 3
    assert len(queue.catalog.page(status=Status.RUNNING)[0]) == 3


def test_every_job_is_done_once_by_one_of_eight(queue: JobQueue, at_once: AtOnce):
    created = [queue.create(new(priority=number % 3)) for number in range(120)]
    done = [one for some in at_once("work_all", processes=8, threads=1) for one in some]
    assert Counter(job_id for job_id, _ in done) == {job.id: 1 for job in created}
    assert {fence for _, fence in done} == {1}


def test_locks_of_many_rows_never_wait_for_each_other(queue: JobQueue, at_once: AtOnce):
    """Batches claimed of an index that others throw away, sweeps, conflicts and cancels."""
    created = [queue.create(new(max_attempts=9)) for _ in range(120)]
    ids = [job.id for job in created]
    at_once("work_all", "meddle", processes=4, threads=2, what=ids)
    if queue.ledger.dialect == "postgresql":
        deadlocks = sa.text(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        with queue.ledger.read() as conn:
            assert conn.scalar(deadlocks) == 0
    Upkeep(queue).reconcile()
    while left := claim(queue, "last", max_jobs=50):
        for job in left:
            queue.complete(job.id, Holder(worker_id="last", lease_id=job.lease_id))
    ends = {"Job completed", "Job cancelled"}
    for job_id in ids:
        job = queue.catalog.get(job_id)
        assert job.status in {Status.SUCCEEDED, Status.CANCELLED}
        log = queue.catalog.events(job_id)
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert sum(event.message in ends for event in log) == 1


def test_sixteen_writers_lose_no_event_and_a_reader_sees_each_once(
    queue: JobQueue, at_once: AtOnce
):
    job = queue.create(new())
    [granted] = claim(queue, "w")
    what = [job.id, granted.lease_id, 6]
    said = at_once("write_events", processes=2, threads=8, what=what)
    written = sorted(number for numbers in said for number in numbers)
    assert len(written) == 16 * 6 * 3
    log, cursor = [], 0
    while page := queue.catalog.events(job.id, after_seq=cursor, limit=50):
        log += page
        cursor = page[-1].seq
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    mine = [event for event in log if event.worker_seq is not None]
    assert sorted(event.worker_seq or 0 for event in mine) == written
    # what one writer wrote stands in the order it wrote
    by_writer = sorted(mine, key=lambda event: ((event.worker_seq or 0) // 1000, event.seq))
    assert [event.worker_seq for event in by_writer] == written


def test_a_reader_with_a_cursor_misses_nothing_while_others_write(
    queue: JobQueue, start: Callable[..., list[Popen[str]]]
):
    job = queue.create(new())
    [granted] = claim(queue, "w")
    total = 2 + 8 * 20 * 3
    what = [job.id, granted.lease_id, 20]
    [child] = start("write_events", processes=1, threads=8, what=what)
    seen: list[int] = []

    def look() -> bool:
        page = queue.catalog.events(job.id, after_seq=seen[-1] if seen else 0)
        seen.extend(event.seq for event in page)
        return len(seen) >= total

    until(look, PATIENCE_S, "all events are seen")
    assert len(json.loads(hear(child))) == 8
    assert seen == list(range(1, total + 1))


@pytest.mark.parametrize("same", [True, False])
def test_a_lease_ends_once(queue: JobQueue, at_once: AtOnce, same: bool):
    job = queue.create(new(max_attempts=5))
    [granted] = claim(queue, "w")
    said = at_once("end", processes=2, threads=8, what=[job.id, granted.lease_id, same])
    if same:
        assert said == ["succeeded"] * 16
    else:
        # release says the same from all, so its four may all be answered
        assert len(said) - said.count("refused") in {1, 4}
    log = [event.message for event in queue.catalog.events(job.id)]
    assert len(log) == 3
    [attempt] = queue.catalog.attempts(job.id)
    assert attempt.ended_at is not None


def test_numbers_and_moments_rise_in_step_and_a_key_makes_one_job(queue: JobQueue, at_once: AtOnce):
    made = at_once("create", processes=2, threads=8, what=5)
    own = [job_id for ids in made for job_id in ids[::2]]
    same = [ids[1::2] for ids in made]
    assert len(set(own)) == 80
    assert all(ids == same[0] for ids in same)
    jobs, cursor = queue.catalog.page(limit=200)
    assert cursor is None
    assert {job.id for job in jobs} == set(own) | set(same[0])
    by_seq = sorted(jobs, key=lambda job: job.seq)
    moments = [job.created_at for job in by_seq]
    assert len({job.seq for job in jobs}) == len(jobs) == 85
    assert moments == sorted(set(moments))
    Upkeep(queue).reconcile()
    order = [job.id for _ in range(2) for job in claim(queue, "w", max_jobs=50)]
    assert order == [job.id for job in by_seq]


def test_of_two_processes_that_find_the_index_gone_one_builds_it(
    queue: JobQueue, ledger_url: str, valkey_url: str
):
    queue.create(new())
    before = queue.reservations.generation("remote") or 0
    queue.reservations.client.flushall()
    other = open_queue(ledger_url, valkey_url)
    fill, filled = queue.reservations.fill, []

    def fill_slowly(*args: Any, **how: Any) -> None:
        filled.append(other.index.ensure("remote"))
        fill(*args, **how)

    queue.reservations.fill = fill_slowly  # type: ignore[method-assign]
    assert queue.index.ensure("remote")
    assert filled == [False]
    assert queue.reservations.generation("remote") == before + 1
    other.reservations.close()
    other.ledger.close()


def test_an_event_written_while_its_lease_ends_is_in_the_log_or_refused(
    queue: JobQueue, at_once: AtOnce
):
    job = queue.create(new())
    [granted] = claim(queue, "w")
    holder = Holder(worker_id="w", lease_id=granted.lease_id)
    queue.append_events(job.id, holder, [NewEvent(message="before")])
    at_once("end", processes=1, threads=4, what=[job.id, granted.lease_id, True])
    log = [event.message for event in queue.catalog.events(job.id)]
    assert log == ["Job queued", "Job claimed", "before", "Job completed"]
