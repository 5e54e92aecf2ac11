"""How an index is built, counts, is found lost, and is swept away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from broker.errors import GenerationMoved
from broker.reservations.keys import QueueKeys
from broker.reservations.store import GRANT_HOLD_MS, Reservations
from broker.states import Index
from tests.contract.scripts.kit import (
    ECHO,
    START,
    Moment,
    Q,
    build,
    everything,
    opened,
    ready,
    take,
    where,
)
from tests.services import Valkey

# -- rebuild ----------------------------------------------------------------------------------


def test_one_builds_at_a_time(store: Reservations, moment: Moment):
    other = opened(store.client, moment)
    assert store.start_building(Q, "mine")
    assert not other.start_building(Q, "theirs")
    other.stop_building(Q, "theirs")
    assert not other.start_building(Q, "theirs")
    store.stop_building(Q, "mine")
    assert other.start_building(Q, "theirs")


def test_a_generation_is_read_by_nobody_until_it_is_published(store: Reservations):
    store.admit(Q, [ready(1)])
    assert store.start_building(Q, "t")
    store.build(Q, 2, "t", [ready(1), ready(2)])
    assert take(store, limit=9) == ("job1",)
    store.publish(Q, 2, "t", {ECHO.key: 2}, mark_ms=START)
    assert store.generation(Q) == 2
    assert take(store, limit=9) == ("job1", "job2")
    with pytest.raises(GenerationMoved):
        store.publish(Q, 2, "t", {})


def test_who_lost_the_duty_to_build_publishes_nothing(store: Reservations):
    assert store.start_building(Q, "slow")
    store.build(Q, 2, "slow", [ready(1)])
    store.client.delete(QueueKeys(Q).building)
    assert store.start_building(Q, "fast")
    with pytest.raises(GenerationMoved):
        store.build(Q, 2, "slow", [ready(2)])
    with pytest.raises(GenerationMoved):
        store.publish(Q, 2, "slow", {})
    assert store.generation(Q) == 1
    store.build(Q, 3, "fast", [ready(3)])
    store.publish(Q, 3, "fast", {})
    assert take(store, limit=9) == ("job3",)


def test_only_older_generations_are_swept(store: Reservations):
    store.admit(Q, [ready(1)])
    build(store, 2)
    store.admit(Q, [ready(1)])
    assert store.start_building(Q, "t")
    store.build(Q, 10, "t", [ready(1)])
    kept = {key for key in everything(store) if ":g1:" not in key}
    assert store.sweep_generations(Q, 2) > 0
    assert set(everything(store)) == kept
    assert store.sweep_generations(Q, 2) == 0
    assert store.sweep_generations("remot", 99) == 0, "another queue's keys are not ours"


def test_the_mark_says_up_to_when_an_index_is_whole(store: Reservations):
    assert store.mark(Q) == 0
    store.set_mark(Q, START)
    assert store.mark(Q) == START
    build(store, 2)
    assert store.mark(Q) == 0
    store.client.flushall()
    assert store.mark(Q) is None
    store.set_mark(Q, START)
    assert store.client.keys("*") == []


def test_an_index_that_another_server_wrote_counts_as_lost(
    start_valkey: Callable[..., Valkey],
):
    server = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    with server.client() as client:
        first = opened(client, None)
        build(first)
        first.set_mark(Q, START)
    server.kill()
    server.start()
    with server.client() as client:
        second = opened(client, None)
        assert second.generation(Q) == 1, "the keys are all there"
        assert second.mark(Q) is None


# -- the server's own clock -------------------------------------------------------------------


def test_without_a_test_the_clock_is_the_servers(reservations_redis: redis.Redis):
    store = opened(reservations_redis, None)
    build(store)
    store.admit(Q, [ready(1)])
    before = store.clock_ms()
    held = store.reserve(Q, lambda _: True, lease_id="L", worker_id="w")
    assert before - 1 <= held.now_ms <= store.clock_ms()
    deadline = where(store, 1)[Index.GRANTING]
    assert deadline == held.now_ms + GRANT_HOLD_MS
