"""URLs of the reservations: what is meant, and what is refused."""

import pytest
from redis.sentinel import SentinelConnectionPool

from broker.errors import ConfigurationError
from broker.reservations.addresses import client_of
from broker.reservations.cluster import Cluster


def test_sentinels_are_named_with_service_and_database() -> None:
    client = client_of("redis-sentinel://edge:p%40ss@a:1,b,[::1]:3/main/2")
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "main"
    told = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in told] == [("a", 1), ("b", 26379), ("::1", 3)]
    assert [one.get("password") for one in told] == [None] * 3
    wanted = {"username": "edge", "password": "p@ss", "db": 2, "decode_responses": True}
    assert wanted.items() <= pool.connection_kwargs.items()
    client.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("joint", ["-", "+"])
def test_a_cluster_is_named_by_any_of_its_nodes(tls: bool, joint: str) -> None:
    scheme = "rediss" if tls else "redis"
    client = client_of(f"{scheme}{joint}cluster://edge:p%40ss@a:1,b,[::1]:3")
    assert isinstance(client, Cluster)
    assert client.nodes == (("a", 1), ("b", 6379), ("::1", 3))
    wanted = {"username": "edge", "password": "p@ss", "ssl": tls, "decode_responses": True}
    assert wanted.items() <= client.options.items()
    client.register_script("return 1")  # which asks nobody
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis-sentinel://a:1", "redis-sentinel:///main", "redis-sentinel://a:x/main/0",
        "redis-sentinel://a:1/main/zero", "redis-sentinel://:1/main/0", "http://a", "a", "",
        "redis-cluster://", "redis-cluster://a:x", "redis-cluster://a/1",
    ],
)  # fmt: skip
def test_what_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis-sentinel://host") as refusal:
        client_of(url)
    assert "zero" not in refusal.value.message
