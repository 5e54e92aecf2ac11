"""Keys of the reservations that somebody else has written: they cost the index, and no more."""

from contextlib import suppress

import pytest

from broker.errors import GenerationMoved
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import Job
from broker.reservations.keys import QueueKeys
from broker.reservations.store import Reservations
from broker.states import Status
from broker.upkeep import Upkeep
from tests.contract.test_queue import claim, holder, new


def keys_of(reservations: Reservations, job: Job) -> list[str]:
    """Name the keys of a queue's index, and those in it that are a waiting job's."""
    keys = QueueKeys(job.queue, reservations.generation(job.queue) or 0)
    names = ("lanes", "lanes_ver", "heads", "scheduled", "granting", "reserved", "folded")
    mine = (f"lane:{job.lane}", f"job:{job.id}")
    return [keys.pointer, keys.mark, *(keys.prefix + one for one in (*names, *mine))]


@pytest.mark.parametrize("text", [True, False])
def test_an_index_with_a_key_that_is_not_its_own_is_built_anew(
    queue: JobQueue, reservations: Reservations, upkeep: Upkeep, *, text: bool
) -> None:
    client = reservations.client
    queue.create(new())
    [held] = claim(queue)
    queue.create(new(queue="the-next"))
    for at in range(len(keys_of(reservations, held))):
        job = queue.create(new())
        key = keys_of(reservations, job)[at]
        client.delete(key)
        if text or key.endswith(f"job:{job.id}"):
            client.set(key, "not ours")
        else:
            client.hset(key, "not", "ours")
        for _ in range(2):
            for sweep in (upkeep.reconcile, upkeep.expire, upkeep.promote):
                with suppress(GenerationMoved):
                    sweep()
        # and all queues are looked at, as ever
        upkeep.reconcile()
        [granted] = claim(queue, policy=Policy(queues=("remote",)))
        assert granted.id == job.id, key
        queue.complete(job.id, holder(granted))
    assert queue.heartbeat(held.id, holder(held), lease_seconds=60).job.id == held.id
    assert queue.complete(held.id, holder(held)).status is Status.SUCCEEDED


def test_a_claim_builds_a_damaged_index_by_itself(
    queue: JobQueue, reservations: Reservations
) -> None:
    job = queue.create(new())
    keys = QueueKeys("remote", reservations.generation("remote") or 0)
    reservations.client.delete(f"{keys.prefix}lane:{job.lane}")
    reservations.client.set(f"{keys.prefix}lane:{job.lane}", "not ours")
    assert [one.id for one in claim(queue)] == [job.id]


def test_a_builder_that_would_never_end_is_none(
    queue: JobQueue, reservations: Reservations
) -> None:
    queue.create(new())
    keys = QueueKeys("remote")
    reservations.client.delete(keys.pointer)
    reservations.client.set(keys.building, "not ours")
    assert not queue.index.ensure("remote")
    assert 0 < reservations.client.pttl(keys.building) <= 10_000
