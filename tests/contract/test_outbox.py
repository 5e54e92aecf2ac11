"""In which order relays are given what Celery must be told."""

from broker.ledger import outbox
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import Effect
from tests.contract.conftest import SetClock
from tests.contract.test_queue import claim, holder, new


def taken(ledger: Ledger, clock: SetClock, owner: str) -> list[Effect]:
    """Take what one relay is given."""
    with ledger.write() as conn:
        return outbox.take(conn, owner=owner, now=clock.now(), lock_s=30)


def kinds(effects: list[Effect]) -> list[str]:
    return [effect.kind for effect in effects]


def test_no_relay_overtakes_another_with_the_same_job(
    queue: JobQueue, ledger: Ledger, clock: SetClock
) -> None:
    queue.create(new())
    [job] = claim(queue)
    first = taken(ledger, clock, "one")
    assert kinds(first) == ["event", "state", "event"]
    # it has not told yet that the job has started
    queue.complete(job.id, holder(job))
    another = queue.create(new())
    assert [effect.job_id for effect in taken(ledger, clock, "other")] == [another.id]
    with ledger.write() as conn:
        outbox.done(conn, [effect.seq for effect in first], now=clock.now())
    assert kinds(taken(ledger, clock, "other")) == ["store", "event"]
    # and one that never comes back holds it up for as long as its lock only
    clock.advance(31)
    assert "store" in kinds(taken(ledger, clock, "third"))
