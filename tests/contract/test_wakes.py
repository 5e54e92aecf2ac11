"""Wake-ups of waiting claims: never for what cannot be claimed yet, never fatal to who listens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from broker.policy import Lane
from broker.reservations.keys import WAKE_PATTERN
from broker.reservations.shapes import Placement
from broker.reservations.store import Reservations
from broker.states import Index

#: who listens at another node of a cluster hears a moment later
pytestmark = pytest.mark.parametrize("reservations_redis", ["fake", "real"], indirect=True)
LANE = Lane(queue="remote", type="codex_exec", repository="github.com/o/n", capabilities=())


@pytest.fixture
def store(reservations_redis: redis.Redis) -> Reservations:
    fake = "fake" in type(reservations_redis).__module__.lower()
    return Reservations(reservations_redis, shebang=not fake)


@pytest.fixture
def heard(store: Reservations) -> Iterator[Any]:
    """Give what has been published since the last look."""
    pubsub = store.client.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe(WAKE_PATTERN)
    while pubsub.get_message(timeout=0.2):
        pass

    def take() -> list[tuple[str, int]]:
        found = []
        while message := pubsub.get_message(timeout=0.2):
            if message["type"] == "pmessage":
                data = json.loads(message["data"])
                found.append((data["lane"], data["n"]))
        return found

    yield take
    pubsub.close()


def placement() -> Placement:
    return Placement(
        id="a",
        index=Index.READY,
        at_ms=0,
        version=1,
        lane=LANE,
        member="0000000000000001:a",
        priority=0,
    )


def test_an_index_being_built_wakes_nobody_before_it_can_be_read(store: Reservations, heard: Any):
    """A claim that was woken too early found no index and answered 503 to its worker."""
    assert store.start_building("remote", "token")
    store.build("remote", 1, "token", [placement()])
    assert heard() == []
    store.publish("remote", 1, "token", {LANE.key: 1})
    assert heard() == [(LANE.key, 1)]
    assert store.lane("remote", LANE.key) == LANE


def test_a_lane_is_unknown_rather_than_an_error_while_there_is_no_index(store: Reservations):
    """The error ended the listener for a second, which missed the wake-up that counted."""
    assert store.lane("remote", LANE.key) is None
