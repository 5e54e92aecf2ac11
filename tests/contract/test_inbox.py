"""The inbox on a real server: every message is in its queue, in one inbox, or settled."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu import Connection

from broker.bridge.fetch import Drain
from broker.bridge.inbox import BATCH_BYTES, FORGET_S, Inbox
from broker.records import Ingested

QUEUE = "remote"


@pytest.fixture(params=[{}, {"global_keyprefix": "acme:"}, {"sep": "~", "priority_steps": [0, 5]}])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Give each way in which an orchestrator may have named its lists."""
    found: dict[str, Any] = request.param
    return found


@pytest.fixture
def connection(valkey_url: str, options: dict[str, Any]) -> Iterator[Connection]:
    with Connection(valkey_url, transport_options=options) as made:
        yield made


@pytest.fixture
def server(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


def inbox_of(connection: Connection, owner: str = "one") -> Inbox:
    return Inbox(connection.default_channel, QUEUE, token=owner, overflow="others")


def put(connection: Connection, body: str, priority: int = 0) -> None:
    message = {"body": body, "properties": {"priority": priority}, "headers": {}}
    connection.default_channel._put(QUEUE, message)


def bodies(raws: list[bytes]) -> list[str]:
    return [raw.decode().partition('"body": "')[2].partition('"')[0] for raw in raws]


def test_the_best_priority_first_and_the_oldest_first_within_it(connection: Connection):
    for body, priority in (("a", 9), ("b", 0), ("c", 0), ("d", 5)):
        put(connection, body, priority)
    inbox = inbox_of(connection)
    assert bodies(inbox.fetch(2)) == ["b", "c"]
    assert sorted(bodies(inbox.fetch(9))) == ["a", "d"]
    assert bodies(inbox.load())[:2] == ["b", "c"]


def test_what_is_not_settled_is_there_again(connection: Connection):
    for body in "abc":
        put(connection, body)
    inbox = inbox_of(connection)
    inbox.fetch(2)
    assert bodies(inbox_of(connection).load()) == ["a", "b"]
    assert inbox.settle(1)
    assert bodies(inbox.load()) == ["b"]
    assert inbox.settle(1)
    assert inbox.load() == []
    assert bodies(inbox.fetch()) == ["c"]


def test_waiting_moves_a_message_like_fetching(connection: Connection):
    inbox = inbox_of(connection)
    assert inbox.wait(0.01) is None
    put(connection, "a")
    raw = inbox.wait(5)
    assert raw is not None
    assert inbox.load() == [raw]


def test_some_go_to_another_queue_when_the_rest_is_settled(
    connection: Connection, server: redis.Redis, options: dict[str, Any]
):
    for body in "abc":
        put(connection, body)
    inbox = inbox_of(connection)
    raws = inbox.fetch()
    assert inbox.settle(3, [raws[1]])
    assert inbox.load() == []
    assert server.lrange(options.get("global_keyprefix", "") + "others", 0, -1) == [raws[1]]


def test_an_owner_whose_lease_lapsed_settles_nothing_and_its_messages_go_back(
    connection: Connection, server: redis.Redis
):
    for body in "abcd":
        put(connection, body)
    frozen, other = inbox_of(connection, "one"), inbox_of(connection, "two")
    taken = frozen.fetch(3)
    assert other.rescue() == 0  # the owner lives
    for key in server.keys("*inbox-owner*"):
        server.delete(key)
    assert other.rescue() == 3
    assert not frozen.settle(3)
    assert bodies(taken) == ["a", "b", "c"]
    assert bodies(other.fetch()) == ["a", "b", "c", "d"]  # in their old order
    assert frozen.load() == []
    assert other.rescue() == 0


def test_a_closed_inbox_is_given_back_at_once_and_forgotten_when_empty(
    connection: Connection, server: redis.Redis
):
    put(connection, "a")
    first, second = inbox_of(connection, "one"), inbox_of(connection, "two")
    first.fetch()
    first.close()
    assert second.rescue() == 1
    assert bodies(second.fetch()) == ["a"]
    second.settle(1)
    second.close()
    for key in server.keys("*drawbridge.inboxes"):
        assert [member for member in server.zrange(key, 0, -1) if b"two" in member] == []


def test_an_empty_inbox_that_nobody_uses_is_forgotten_after_a_day(
    connection: Connection, server: redis.Redis
):
    inbox_of(connection, "gone").fetch()
    for key in server.keys("*inbox-owner*"):
        server.delete(key)
    (registry,) = server.keys("*drawbridge.inboxes")
    other = inbox_of(connection, "two")
    other.rescue()
    assert server.zcard(registry) == 1
    server.zincrby(registry, -FORGET_S - 1, f"gone:{QUEUE}")
    other.rescue()
    assert server.zcard(registry) == 0


def test_a_batch_is_bounded_in_bytes(connection: Connection):
    for _ in range(4):
        put(connection, "x" * (BATCH_BYTES // 2))
    assert len(inbox_of(connection).fetch()) == 2


def test_a_drain_slower_than_its_lease_leaves_nothing_in_its_inbox(
    connection: Connection, server: redis.Redis
):
    """What it had ingested by then is offered to the ledger again, which knows it, and settled."""
    put(connection, "a")
    batches: list[list[bytes]] = []

    def ingest(items: list[bytes]) -> list[Ingested]:
        batches.append(items)
        if len(batches) == 1:
            for key in server.keys("*inbox-owner*"):
                server.delete(key)
        return []

    drain = Drain(
        SimpleNamespace(connection_for_read=lambda: connection),  # type: ignore[arg-type]
        SimpleNamespace(ingest=ingest),  # type: ignore[arg-type]
        SimpleNamespace(queue=QUEUE, redis=lambda raw, _: raw),  # type: ignore[arg-type]
        revokes=SimpleNamespace(apply=lambda _: None),  # type: ignore[arg-type]
        ahead=SimpleNamespace(room=lambda: 9, add=lambda _: None),  # type: ignore[arg-type]
        overflow="others",
    )
    for _ in range(4):
        drain.step()
    drain.close()
    assert [bodies(batch) for batch in batches] == [["a"], ["a"]]
    assert server.keys("*drawbridge.inbox:*") == []
