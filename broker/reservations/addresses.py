"""Which URLs name the reservations' server, and how a client of each is made.

``redis://``, ``rediss://`` and ``unix://`` are redis-py's own. Behind Sentinels, which say who is
master just now: ``redis-sentinel://user:password@host:26379,host2:26379/SERVICE/DB``. User and
password are the server's; Sentinels are asked without.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from broker.errors import ConfigurationError

SENTINEL: Final = "redis-sentinel"
SENTINEL_PORT: Final = 26379
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
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        if urlsplit(url).scheme == SENTINEL:
            return _by_sentinel(url, options)
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise ConfigurationError(
            "The reservations URL cannot be read; write redis://host:port/db, or "
            f"{SENTINEL}://host:port,host:port/service/db"
        ) from None


def _by_sentinel(url: str, options: dict[str, Any]) -> redis.Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ValueError("a Sentinel URL names hosts and a service")
    known = {"username": unquote(user) or None, "password": unquote(password) or None}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [_host(one) for one in hosts.split(",")],
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


def _host(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not host:
        raise ValueError("a Sentinel without a host")
    return host.strip("[]"), int(port or SENTINEL_PORT)
