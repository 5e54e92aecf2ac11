"""What the ledger forgets in time, and what it must not."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from broker.ledger import audit
from broker.ledger.attempts import attempts
from broker.ledger.engine import Ledger
from broker.ledger.events import events
from broker.ledger.jobs import jobs
from broker.ledger.outbox import outbox
from broker.queue import JobQueue
from broker.records import Job, StoredFile
from broker.redrive_shapes import Redrive
from broker.redrive_shapes import RedriveOutcome as Outcome
from broker.states import Status
from broker.upkeep import Upkeep
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new
from tests.contract.test_redrive import dead

FILE = StoredFile(digest="sha256:" + 64 * "a", size_bytes=1, storage_path="x")


def ended(queue: JobQueue) -> Job:
    """Make a job that succeeded, with a file."""
    queue.create(new())
    [job] = claim(queue)
    queue.add_artifact(job.id, holder(job), name="log", content_type=None, file=FILE)
    return queue.complete(job.id, holder(job))


def tell_celery(ledger: Ledger, clock: SetClock, *some: Job) -> None:
    """Settle all that Celery must be told of jobs."""
    with ledger.write() as conn:
        told = outbox.update().where(outbox.c.job_id.in_([job.id for job in some]))
        conn.execute(told.values(done_at=clock.now()))


def left(ledger: Ledger) -> set[str]:
    """Name the jobs that the ledger knows."""
    with ledger.read() as conn:
        return set(conn.scalars(sa.select(jobs.c.id)))


def test_what_ended_is_forgotten_in_time_with_all_that_hangs_on_it(
    queue: JobQueue, ledger: Ledger, clock: SetClock, upkeep: Upkeep
) -> None:
    done, failed, letter = ended(queue), dead(queue, retryable=False), dead(queue)
    untold, waiting = ended(queue), queue.create(new())
    tell_celery(ledger, clock, done, failed, letter, waiting)
    keep = queue.settings
    clock.advance(keep.keep_jobs.total_seconds() - 1)
    assert upkeep.prune()["jobs"] == 0
    clock.advance(2)
    assert upkeep.prune()["jobs"] == 2
    # a dead letter is kept for longer, and what Celery was not told until it is told
    assert left(ledger) == {letter.id, untold.id, waiting.id}
    clock.advance((keep.keep_dead_letters - keep.keep_jobs).total_seconds())
    assert upkeep.prune()["jobs"] == 1
    assert left(ledger) == {untold.id, waiting.id}
    with ledger.read() as conn:
        for table in (attempts, events, outbox):
            assert set(conn.scalars(sa.select(table.c.job_id))) <= {untold.id, waiting.id}


def test_what_is_redriven_at_this_moment_is_not_forgotten(
    queue: JobQueue, ledger: Ledger, clock: SetClock, upkeep: Upkeep
) -> None:
    job = dead(queue)
    tell_celery(ledger, clock, job)
    clock.advance(queue.settings.keep_dead_letters.total_seconds() + 1)
    pruned: list[Future[dict[str, int]]] = []
    append = audit.append

    def prune_beside(*args: Any) -> None:
        """Come when the job is redriven, and nobody else can know it."""
        append(*args)
        pruned.append(pool.submit(upkeep.prune))
        # SQLite lets it begin only afterwards
        wait(pruned, timeout=0 if ledger.dialect == "sqlite" else 2)

    with ThreadPoolExecutor(1) as pool, patch.object(audit, "append", prune_beside):
        [item] = queue.redrive(Redrive(ids=(job.id,))).items
        assert pruned[0].result()["jobs"] == 0
    assert item.outcome is Outcome.REDRIVEN
    assert queue.catalog.get(job.id).status is Status.QUEUED
