"""The servers that a stack stands on, and the proxy on each wire to them: what shape they have."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Self

import psutil

from tests.chaos.proxy import Proxy
from tests.rabbitmq import RabbitMQ
from tests.sentinels import Pair
from tests.services import Postgres, Valkey

#: What the orchestrator was promised must outlive a kill of its broker: that is not ours to keep.
DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a stack is made of."""

    #: "sqlite" or "postgres": the ledger
    database: str
    #: reservations on a primary and its replica behind a Sentinel
    sentinel: bool = False
    #: RabbitMQ as the Celery broker
    rabbitmq: bool = False
    #: the second edge, bridge and beat live in other times
    skewed: bool = False


class Servers:
    """Broker, result backend, reservations and ledger, each behind a wire where it has one."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._held = ExitStack()
        self.broker = self._server(RabbitMQ() if shape.rabbitmq else Valkey(*DURABLE))
        self.backend = self._server(Valkey(*DURABLE))
        #: Whom the Sentinel decides between; who is asked for the primary is led past any wire.
        self.pair: Pair | None = self._server(Pair()) if shape.sentinel else None
        self._alone: Valkey | None = None if shape.sentinel else self._server(Valkey())
        self.postgres = self._server(Postgres()) if shape.database == "postgres" else None
        wired = {
            "broker": self.broker,
            "backend": self.backend,
            "reservations": self._alone,
            "ledger": self.postgres,
        }
        self.wires = {name: self.wire(one.port) for name, one in wired.items() if one is not None}

    def _server(self, server: Any) -> Any:
        self._held.callback(server.remove)
        return server.start()

    def wire(self, port: int) -> Proxy:
        """Put a proxy before a port."""
        proxy = Proxy(port).start()
        self._held.callback(proxy.stop)
        return proxy

    @property
    def reservations(self) -> Valkey:
        """The server of the reservations; the primary, if there are two."""
        if self._alone is not None:
            return self._alone
        assert self.pair is not None
        return self.pair.primary()

    def addresses(self) -> dict[str, str]:
        """Name each as the stack is told it, by its option's name."""
        found = {
            "broker-url": self._at("broker", self.broker.url, self.broker.port),
            "result-backend": self._at("backend", self.backend.url, self.backend.port),
            "reservations-url": (
                self.pair.url
                if self.pair is not None
                else self._at("reservations", self.reservations.url, self.reservations.port)
            ),
        }
        if self.postgres is not None:
            found["database-url"] = self._at("ledger", self.postgres.url(), self.postgres.port)
        return found

    def _at(self, wire: str, url: str, port: int) -> str:
        return url.replace(f":{port}/", f":{self.wires[wire].port}/")

    def pids_of(self, name: str) -> list[int]:
        """List the processes of one of them, its children first."""
        server = getattr(self, name)
        if server.process is None:
            raise ProcessLookupError(name)
        pid = server.pid
        children = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in children] + [pid]

    def heal(self) -> None:
        """Start what does not run, and let everything through again."""
        for server in (self.broker, self.backend, self.pair or self._alone, self.postgres):
            if server is not None:
                server.start()
        for wire in self.wires.values():
            wire.stall(on=False)
            wire.refuse(on=False)
            wire.drop_replies(0)
            wire.slow(0.0)

    def whole(self) -> bool:
        """Tell whether those who decide among themselves have done so."""
        return self.pair is None or self.pair.whole()

    def held(self, queue: str) -> int:
        """Count the messages that the broker has not been told to forget, whoever has them."""
        return self.broker.messages(queue) if isinstance(self.broker, RabbitMQ) else 0

    def close(self) -> Self:
        """End everything."""
        self._held.close()
        return self
