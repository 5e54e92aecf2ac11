"""How far a job is becomes what Celery is told: in its order, once, and of its own lease alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from broker.errors import LedgerUnavailable
from broker.ledger.engine import Ledger
from broker.ledger.outbox import outbox
from broker.progress import tell_progress
from broker.queue import JobQueue
from broker.records import Job
from tests.contract.test_queue import claim, holder, new


class Away:
    """A ledger that does not answer."""

    def write(self) -> Any:
        raise LedgerUnavailable


def tell(queue: JobQueue, ledger: Any = None) -> int:
    stores = (ledger or queue.ledger, queue.reservations)
    return tell_progress(*stores, queue.index.queues(), queue.clock)


def say(queue: JobQueue, job: Job, **progress: Any) -> None:
    queue.heartbeat(job.id, holder(job), lease_seconds=60, progress=progress)


def states(ledger: Ledger, job: Job) -> list[tuple[str, Mapping[str, Any] | None]]:
    with ledger.read() as conn:
        rows = conn.execute(
            sa.select(outbox.c.data)
            .where(outbox.c.job_id == job.id, outbox.c.kind.in_(("state", "store")))
            .order_by(outbox.c.seq)
        ).all()
    return [(row.data["state"], row.data.get("meta")) for row in rows]


def test_it_is_told_once_however_often_it_is_said(queue: JobQueue, ledger: Ledger) -> None:
    queue.create(new())
    [job] = claim(queue)
    for _ in range(3):
        say(queue, job, percent=10.0, message="a")
    assert [tell(queue), tell(queue)] == [1, 0]
    say(queue, job, percent=20.0, message="b", state=None, meta=None)
    say(queue, job, percent=30.0, message="c", state="BUILDING", meta={"step": 2})
    assert tell(queue) == 1
    say(queue, job, percent=40.0, message="d")
    queue.complete(job.id, holder(job))
    assert tell(queue) == 0, "it has ended, and what is final stays"
    assert states(ledger, job) == [
        ("STARTED", None),
        ("PROGRESS", {"percent": 10.0, "message": "a"}),
        ("BUILDING", {"percent": 30.0, "message": "c", "step": 2}),
        ("SUCCESS", None),
    ]


def test_what_an_earlier_holder_said_is_not_told(queue: JobQueue, ledger: Ledger) -> None:
    queue.create(new())
    [job] = claim(queue)
    say(queue, job, message="mine")
    queue.release(job.id, holder(job))
    [again] = claim(queue, "w2")
    assert tell(queue) == 0
    say(queue, again, message="ours")
    assert tell(queue) == 1
    assert [state for state, _ in states(ledger, job)] == ["STARTED", "STARTED", "PROGRESS"]


def test_what_the_ledger_could_not_take_is_told_later(queue: JobQueue) -> None:
    queue.create(new())
    [job] = claim(queue)
    say(queue, job, message="half")
    with pytest.raises(LedgerUnavailable):
        tell(queue, Away())
    assert tell(queue) == 1
