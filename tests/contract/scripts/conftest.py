"""Reservations with an empty index, on a fake Redis and on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import redis

from broker.reservations.keys import QueueKeys
from broker.reservations.store import Reservations
from tests.contract.scripts.kit import Moment, Q, build, opened


@pytest.fixture
def moment() -> Moment:
    return Moment()


@pytest.fixture
def store(reservations_redis: redis.Redis, moment: Moment) -> Reservations:
    """Give reservations with an empty index, on a fake and on a real server."""
    made = opened(reservations_redis, moment)
    build(made)
    return made


@pytest.fixture
def heard(store: Reservations) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """Give the wake-ups since the last look: lane and number."""
    pubsub = store.client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(QueueKeys(Q).channel)
    # the answer to the subscription; what is published after it, is heard
    pubsub.get_message(timeout=5)

    def messages() -> list[tuple[str, int]]:
        store.client.publish(QueueKeys(Q).channel, "end")
        found: list[tuple[str, int]] = []
        while True:
            message = pubsub.get_message(timeout=5)
            assert message is not None
            if message["data"] == "end":
                return found
            told = json.loads(message["data"])
            assert told["queue"] == Q
            found.append((told["lane"], told["n"]))

    yield messages
    pubsub.close()
