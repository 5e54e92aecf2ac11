"""What PostgreSQL does in one statement: the same rows as step by step, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID, uuid5

import pytest
import sqlalchemy as sa

from broker import errors
from broker.ledger import at_once, grants, transitions
from broker.ledger.attempts import attempts
from broker.ledger.engine import Ledger
from broker.ledger.events import events
from broker.ledger.jobs import jobs
from broker.ledger.outbox import outbox
from broker.ledger.workers import workers
from broker.queue import JobQueue
from broker.records import Completion, Job
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Status
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new
from tests.services import Postgres

pytestmark = pytest.mark.postgres

#: what no two runs have alike
_RANDOM: Final = re.compile(r"[0-9a-f]{32}")
RESULTS: Final[Sequence[dict[str, Any]]] = (
    {},
    {"result": {"text": 'quoted "ü" \\ and\nmore %s $1 {}', "n": [1, 2.5, None, True]}},
    {"result": "x" * 2000, "result_summary": "a 'summary'"},
    {"result_summary": "only that \U0001f600"},
)


@pytest.fixture
def ledger_url(postgres_ledger_url: str) -> str:
    """Give the ledger these statements are for."""
    return postgres_ledger_url


@pytest.fixture
def twin(
    postgres_server: Postgres, migrated_postgres: str, reservations: Reservations, clock: SetClock
) -> Iterator[JobQueue]:
    """Give a second queue, with a ledger of its own."""
    url = postgres_server.create_database(like=migrated_postgres)
    ledger = Ledger(url)
    yield JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    ledger.close()
    postgres_server.drop_database(url)


def rows_of(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """Read all that a transition writes, without what is drawn at random."""
    found = {}
    with ledger.read() as conn:
        for table, order in (
            (jobs, jobs.c.seq),
            (attempts, sa.tuple_(attempts.c.started_at, attempts.c.job_id)),
            (events, sa.tuple_(events.c.job_id, events.c.seq)),
            (outbox, sa.tuple_(outbox.c.job_id, outbox.c.seq)),
            (workers, workers.c.worker_id),
        ):
            dropped = {"id"} if table is events else {"seq"} if table is outbox else set()
            found[table.name] = [
                {
                    name: "random" if _RANDOM.fullmatch(str(value)) else value
                    for name, value in row._mapping.items()
                    if name not in dropped
                }
                for row in conn.execute(sa.select(table).order_by(order))
            ]
    return found


def live(queue: JobQueue, clock: SetClock) -> list[Job]:
    """Grant and end jobs in every way that one statement knows; the same each time."""
    begun = clock.moment
    ids = iter(str(uuid5(UUID(int=0), str(n))) for n in range(100))
    for at in range(8):
        queue.create(new(task_id=next(ids), priority=-at, retries=at % 3, payload={"n": at}))
    done = []
    for at, said in enumerate(RESULTS):
        [job] = claim(queue, **({"claim_key": f"key {at}"} if at % 2 else {}))
        clock.advance(1.25)
        done.append(queue.complete(job.id, holder(job), **said))
    some = claim(queue, max_jobs=4, instance_id="i")
    clock.advance(0.5)
    ends = [
        Completion(job_id=job.id, lease_id=job.lease_id, **said)
        for job, said in zip(some, RESULTS, strict=True)
    ]
    done += [one for one in queue.complete_many("w1", ends[::-1]) if isinstance(one, Job)]
    clock.moment = begun
    return done


def test_one_statement_writes_what_many_would(
    queue: JobQueue, twin: JobQueue, clock: SetClock
) -> None:
    with (
        patch.object(grants, "grant", side_effect=AssertionError("step by step")),
        patch.object(transitions, "complete", side_effect=AssertionError("step by step")),
    ):
        done = live(queue, clock)
    queue.reservations.client.flushall()
    with patch.object(at_once, "can", lambda _ledger: False):
        expected = live(twin, clock)
    assert len(done) == len(expected) == 8
    assert rows_of(queue.ledger) == rows_of(twin.ledger)
    for job in done:
        assert job == queue.catalog.get(job.id)


def test_a_message_with_the_most_retries_is_granted_and_ends(
    queue: JobQueue, clock: SetClock
) -> None:
    most = 2**31 - 1
    queue.create(new(retries=most))
    [granted] = claim(queue)
    queue.fail(granted.id, holder(granted), error_message="e", retryable=True)
    clock.advance(60)
    [granted] = claim(queue)
    queue.complete(granted.id, holder(granted))
    with queue.ledger.read() as conn:
        said = conn.scalars(sa.select(outbox.c.data).order_by(outbox.c.seq)).all()
    assert [one["retries"] for one in said if "retries" in one] == [most, *[most + 1] * 3]


def test_what_is_told_is_compact_ascii_json(queue: JobQueue, clock: SetClock) -> None:
    queue.create(new())
    [job] = claim(queue, worker="w-1.x")
    # a runtime of some microseconds is 1e-06 to the one and 0.000001 to the other
    clock.advance(1)
    queue.complete(job.id, holder(job), **RESULTS[1])
    with queue.ledger.read() as conn:
        said = conn.execute(sa.text("SELECT data FROM outbox UNION SELECT payload FROM events"))
        texts = [row[0] for row in said if row[0] is not None]
    assert texts
    for text in texts:
        assert text.isascii()
        written = json.dumps(json.loads(text), separators=(",", ":"))
        # SQL writes 1.0 as 1.000000, which no reader tells apart
        assert re.sub(r"(\.\d*?)0+(?=[,}])", r"\1", text) == re.sub(
            r"(\.\d*?)0+(?=[,}])", r"\1", written
        )


def test_parallel_claims_under_one_key_are_answered_alike(queue: JobQueue) -> None:
    for n in range(8):
        queue.create(new(payload={"n": n}))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: claim(queue, claim_key="same"), range(8)))
    assert len({(job.id, job.lease_id) for answer in answers for job in answer}) == 1
    running = [job for job in queue.catalog.page()[0] if job.status is Status.RUNNING]
    assert len(running) == 1


def test_completes_of_the_same_jobs_in_another_order_never_deadlock(queue: JobQueue) -> None:
    for n in range(20):
        queue.create(new(payload={"n": n}))
    held = claim(queue, max_jobs=20)
    ends = [Completion(job_id=job.id, lease_id=job.lease_id, result=1) for job in held]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda at: queue.complete_many("w1", ends if at % 2 else ends[::-1]), range(8))
        )
    for answer in answers:
        assert all(isinstance(one, Job) and one.status is Status.SUCCEEDED for one in answer)


def test_a_ledger_that_is_cut_off_is_away_and_comes_back(
    queue: JobQueue, ledger: Ledger, ledger_url: str
) -> None:
    queue.create(new())
    [job] = claim(queue)
    with ledger.read() as conn:
        own = conn.scalar(sa.text("SELECT pg_backend_pid()"))
    other = Ledger(ledger_url)
    with other.read() as conn:
        conn.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
    other.close()
    with patch("broker.ledger.pools._has_said_something", lambda _: False):
        with pytest.raises(errors.LedgerUnavailable):
            queue.complete(job.id, holder(job))
        assert queue.complete(job.id, holder(job)).status is Status.SUCCEEDED


def test_a_worker_told_to_drain_and_a_job_that_expired_get_no_grant(
    queue: JobQueue, clock: SetClock
) -> None:
    soon = clock.now() + timedelta(seconds=5)
    expiring = queue.create(new(expires_at=soon))
    clock.advance(10)
    assert claim(queue) == []
    assert queue.catalog.get(expiring.id).status is Status.CANCELLED
    queue.create(new())
    with queue.ledger.write() as conn:
        conn.execute(workers.update().values(draining_at=clock.now()))
    assert claim(queue) == []
