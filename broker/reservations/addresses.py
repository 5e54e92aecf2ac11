"""Which URLs name the reservations' server, and how a client of each is made.

``redis://``, ``rediss://`` and ``unix://`` are redis-py's own. Behind Sentinels, which say who is
master just now: ``redis-sentinel://user:password@host:26379,host2:26379/SERVICE/DB``. User and
password are the server's; Sentinels are asked without. Any nodes of a cluster, which name the
others: ``redis-cluster://user:password@host:6379,host2:6379``, with TLS ``rediss-cluster://``. Some
write ``redis+sentinel`` and ``redis+cluster``; both are read.
"""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import SplitResult, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from broker.errors import ConfigurationError
from broker.reservations.cluster import Cluster

SENTINEL: Final = "redis-sentinel"
CLUSTER: Final = "redis-cluster"
CLUSTER_TLS: Final = "rediss-cluster"
SENTINEL_PORT: Final = 26379
PORT: Final = 6379
#: a Sentinel that is away must not hold up the others
_ASK_S: Final = 0.5


def client_of(url: str) -> redis.Redis:
    """Make a client that connects lazily and never asks twice by itself.

    redis-py's own retries would run a script again whose reply came late.

    Raises:
        ConfigurationError: not the URL of a Redis.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": 2.0,
        "socket_connect_timeout": 2.0,
        "health_check_interval": 15,
    }
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.replace("+", "-")
        if scheme in {CLUSTER, CLUSTER_TLS}:
            return _of_cluster(parts, options | {"ssl": scheme == CLUSTER_TLS})
        options["retry"] = Retry(NoBackoff(), 0)
        if scheme == SENTINEL:
            return _by_sentinel(parts, options)
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise ConfigurationError(
            "The reservations URL cannot be read; write redis://host:port/db, "
            f"{SENTINEL}://host:port,host:port/service/db or {CLUSTER}://host:port,host:port"
        ) from None


def _by_sentinel(parts: SplitResult, options: dict[str, Any]) -> redis.Redis:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("a Sentinel URL names a service")
    known, hosts = _named(parts, SENTINEL_PORT)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        hosts,
        sentinel_kwargs={
            "socket_timeout": _ASK_S,
            "socket_connect_timeout": _ASK_S,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    made: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        service, db=int(database or 0), **known, **options
    )
    return made


def _of_cluster(parts: SplitResult, options: dict[str, Any]) -> redis.Redis:
    if parts.path.strip("/") not in {"", "0"}:
        raise ValueError("a cluster has no database but 0")
    known, hosts = _named(parts, PORT)
    return cast(redis.Redis, Cluster(hosts, options | known))


def _named(parts: SplitResult, port: int) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Read user, password and hosts, of which there may be several."""
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    known = {"username": unquote(user) or None, "password": unquote(password) or None}
    return known, [_host(one, port) for one in hosts.split(",")]


def _host(text: str, default: int) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not host:
        raise ValueError("a server without a host")
    return host.strip("[]"), int(port or default)
