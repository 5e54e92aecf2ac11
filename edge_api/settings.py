"""The only one to know what the edge may be told by its environment, and what it refuses there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from broker.errors import ConfigurationError
from broker.settings import BridgeSettings, Environment, QueueSettings, StoreSettings
from edge_api.source import Network, networks

#: a URL whose name says that it is a broker's, or whose scheme is a broker's whatever its name
_BROKER_NAME: Final = re.compile(r"BROKER|AMQP|RABBIT", re.IGNORECASE)
_URL: Final = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_AMQP: Final = re.compile(r"(?:py|libr)?amqps?://", re.IGNORECASE)
#: threads for large bodies, read as they come
STREAMS: Final = 22
#: threads that no waiting call may take: large bodies, and heartbeats and reports, which come first
RESERVE: Final = 16 + STREAMS
THREADS: Final = 1000 + RESERVE
CALLS_PER_S: Final = 100
FAILURES_PER_MIN: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """What one edge process needs."""

    stores: StoreSettings
    queue: QueueSettings = field(default_factory=QueueSettings)
    #: where jobs made over HTTP go that name no queue
    default_queue: str = "remote"
    #: whether callers on this machine need no operator token (decision 39)
    auth_disabled: bool = False
    #: whose word about the client's address counts
    trusted_proxies: tuple[Network, ...] = ()
    #: the file that says which JWTs are believed; None: none are
    oidc_config: Path | None = None
    #: calls served at once
    threads: int = THREADS
    #: calls of one sort that a worker may make, on average
    calls_per_s: int = CALLS_PER_S
    #: credentials from one address that may be refused before more of them are turned away
    failures_per_min: int = FAILURES_PER_MIN
    #: the rhythm asked of workers, in seconds
    lease_s: int = 60
    wait_s: int = 25

    @property
    def waits_max(self) -> int:
        """Long polls that may wait at once."""
        return max(1, self.threads - RESERVE)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, threads: int = THREADS) -> Self:
        """Read them from the environment.

        Raises:
            ConfigurationError: something is wrong with it, or it names a Celery broker.
        """
        values = os.environ if environ is None else environ
        _refuse_broker(values)
        env = Environment(values)
        provider = env.text("AUTH_PROVIDER", "tokens").lower()
        if provider not in {"tokens", "disabled"}:
            raise ConfigurationError("AUTH_PROVIDER is tokens (the default) or disabled")
        return cls(
            stores=StoreSettings.from_env(values),
            queue=QueueSettings.from_env(values),
            default_queue=BridgeSettings.from_env(values).queues[0],
            auth_disabled=provider == "disabled",
            trusted_proxies=_proxies(env),
            oidc_config=_oidc(env),
            threads=threads,
            calls_per_s=env.number("DRAWBRIDGE_CALLS_PER_SECOND", CALLS_PER_S),
            failures_per_min=env.number("DRAWBRIDGE_FAILURES_PER_MINUTE", FAILURES_PER_MIN),
        )


def _proxies(env: Environment) -> tuple[Network, ...]:
    try:
        return networks(env.words("DRAWBRIDGE_TRUSTED_PROXIES", ()))
    except ValueError as error:
        raise ConfigurationError(f"DRAWBRIDGE_TRUSTED_PROXIES: {error}") from None


def _oidc(env: Environment) -> Path | None:
    named = env.get("DRAWBRIDGE_OIDC_CONFIG")
    return None if named is None else Path(named)


def _refuse_broker(environ: Mapping[str, str]) -> None:
    """Refuse the one secret that must not stand on the internet; its value is never repeated."""
    for name, value in sorted(environ.items()):
        if _AMQP.match(value) or (_BROKER_NAME.search(name) and _URL.match(value)):
            raise ConfigurationError(
                f"The edge must not know the Celery broker, but {name} names one. "
                "Start it with an environment of its own (for example: "
                f"env -u {name} drawbridge edge)."
            )
