"""Reservations behind a Sentinel for tests: how a primary and its replica are made and told."""

from __future__ import annotations

from typing import Any, Final, Self

import redis

from tests.services import Valkey, until, valkey_binary

SERVICE: Final = "reservations"
SETTLE_S: Final = 60.0
#: Without it a replica that comes back waits five seconds for others to come back with it.
AT_ONCE: Final = ("--repl-diskless-sync-delay", "0")


class Sentinel(Valkey):
    """One Sentinel, enough to agree with itself; it keeps what it knows through a restart."""

    name = "sentinel"

    def __init__(self, primary: Valkey) -> None:
        super().__init__()
        self._primary = primary

    def argv(self) -> list[str]:
        """Return its command line; its configuration is its memory, and is written once."""
        config = self.folder / "sentinel.conf"
        if not config.exists():
            config.write_text(
                f"bind 127.0.0.1\ndir {self.folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._primary.port} 1\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 5000\n"
            )
        return [str(valkey_binary()), str(config), "--sentinel", "--port", str(self.port)]

    def answers(self) -> bool:
        """Tell whether it answers."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False

    def ask(self, *words: object) -> Any:
        """Send a command about the service."""
        with self.client() as client:
            return client.execute_command("SENTINEL", *words, SERVICE)


class Pair:
    """A primary, its replica, and a Sentinel that knows both; start may be repeated."""

    def __init__(self) -> None:
        self.servers: tuple[Valkey, ...] = ()
        self.sentinel: Sentinel

    def start(self) -> Self:
        """Start what does not run, the first time until the replica is in step."""
        if self.servers:
            for server in (*self.servers, self.sentinel):
                server.start()
            return self
        first = Valkey(*AT_ONCE)
        self.servers = (first,)
        try:
            first.start()
            replica = Valkey(*AT_ONCE, "--replicaof", "127.0.0.1", str(first.port))
            self.servers = (first, replica)
            replica.start()
            until(lambda: self._follows(replica, first), SETTLE_S, "the replica is in step")
            # who is asked before they have met looks again only after ten seconds
            self.sentinel = Sentinel(first)
            self.sentinel.start()
            until(lambda: self.sentinel.ask("REPLICAS"), SETTLE_S, "the Sentinel knows both")
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """End all, and remove their folders."""
        for server in (*self.servers, *([self.sentinel] if hasattr(self, "sentinel") else [])):
            server.remove()

    @property
    def url(self) -> str:
        """Its address as a user writes it; the first Sentinel does not exist."""
        return f"redis-sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/{SERVICE}/0"

    def primary(self) -> Valkey:
        """Return who is the primary, if the Sentinel is right."""
        _, port = self.sentinel.ask("GET-MASTER-ADDR-BY-NAME")
        return next(one for one in self.servers if one.port == int(port))

    def other(self, server: Valkey) -> Valkey:
        """Return the other one."""
        return next(one for one in self.servers if one is not server)

    def primaries(self) -> list[Valkey]:
        """List those who take themselves for the primary."""
        return [one for one in self.servers if _replication(one).get("role") == "master"]

    def whole(self) -> bool:
        """Tell whether there is one primary, for the Sentinel too, and the other follows it."""
        primary = self.primary()
        return self.primaries() == [primary] and self._follows(self.other(primary), primary)

    def _follows(self, replica: Valkey, primary: Valkey) -> bool:
        said = _replication(replica)
        linked = said.get("master_link_status") == "up"
        return linked and int(said["master_port"]) == primary.port


def _replication(server: Valkey) -> dict[str, Any]:
    """Ask a server for its part; one that is away has none."""
    try:
        with server.client() as client:
            found: Any = client.info("replication")
            return dict(found)
    except redis.RedisError:
        return {}
