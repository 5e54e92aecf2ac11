"""One whole stack: the only place that knows in which order it comes up, and that it goes down.

Servers, ledger and tokens, Flower, bridge, beat, edge, workers. What comes up last goes down
first, so nobody loses what it leans on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError

from broker.errors import LedgerUnavailable, ReservationsUnavailable
from broker.ledger import migrate
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.reservations.store import Reservations
from broker.stack import servers
from broker.stack.folder import Folder
from broker.stack.processes import StartFailed, Supervisor, end_leftovers
from broker.stack.programs import Addresses, Programs

CHECK_S: Final = 0.2
PING_S: Final = 0.5
BROKER_S: Final = 5.0
MADE_BY: Final = "drawbridge up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a stack is asked to be; None for an address means an embedded one."""

    data_dir: Path
    environ: Mapping[str, str] = field(repr=False)
    port: int | None = None
    workers: int = 1
    worker_arguments: tuple[str, ...] = ()
    queue: str = "remote"
    flower: bool = True
    broker_url: str | None = field(default=None, repr=False)
    result_backend: str | None = field(default=None, repr=False)
    database_url: str | None = field(default=None, repr=False)
    reservations_url: str | None = field(default=None, repr=False)


class Stack:
    """A stack that runs from `start` to `stop`; both may be repeated."""

    def __init__(self, options: Options, stopping: threading.Event) -> None:
        self.options = options
        self.folder = Folder(options.data_dir.absolute())
        self._stopping = stopping
        self._supervisor = Supervisor(self.folder.record, stopping=stopping)
        self._held = ExitStack()
        self._addresses: Addresses | None = None
        self.operator_token_file: Path | None = None
        self._worker_ids = tuple(f"worker-{number + 1}" for number in range(options.workers))

    def start(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Bring everything up; on any refusal nothing is left running."""
        if self._addresses is not None:
            return
        try:
            self._start(tell)
        except BaseException:
            self.stop()
            raise

    def _start(self, tell: Callable[[str], None]) -> None:
        self._check_wanted()
        self._held.enter_context(self.folder.locked())
        if left := end_leftovers(self.folder.record):
            tell(f"ended what an earlier stack left running: {', '.join(left)}")
        addresses, embedded = self._choose_addresses()
        programs = Programs(
            folder=self.folder,
            addresses=addresses,
            queue=self.options.queue,
            environ=self.options.environ,
        )
        if embedded:
            tell("starting the servers")
            made = (programs.server(name, port=p, options=o) for name, (p, o) in embedded.items())
            self._supervisor.start(*made)
        tell("preparing the ledger")
        migrate.upgrade(addresses.database_url)
        self.operator_token_file = self._token(addresses.database_url, "operator")
        tell("starting edge, bridge and beat" + (" and Flower" if self.options.flower else ""))
        flower = [programs.flower()] if self.options.flower else []
        bridge = programs.bridge(lambda: _bridge_answers(addresses.broker_url))
        self._supervisor.start(*flower, bridge, programs.beat(), programs.edge())
        self._addresses = addresses
        self._start_workers(programs, tell)

    def _check_wanted(self) -> None:
        """Refuse what cannot work, before anything is started for it."""
        wanted = self.options
        if wanted.port is not None and not servers.is_free(wanted.port):
            raise StartFailed(f"port {wanted.port} is taken; name another with --port")
        if wanted.broker_url is not None and (why := _silent(wanted.broker_url)):
            raise StartFailed(f"the Celery broker does not answer ({why}); is --broker-url right?")
        if wanted.reservations_url is not None:
            try:
                Reservations.connect(wanted.reservations_url).clock_ms()
            except ReservationsUnavailable as error:
                why = f"the reservations do not answer ({error.__cause__ or error})"
                raise StartFailed(f"{why}; is --reservations-url right?") from error
        if wanted.database_url is not None:
            try:
                with Ledger(wanted.database_url).read():
                    pass
            except LedgerUnavailable as error:
                why = f"the database does not answer ({error.__cause__ or error})"
                raise StartFailed(f"{why}; is --database-url right?") from error

    def _start_workers(self, programs: Programs, tell: Callable[[str], None]) -> None:
        if not self._worker_ids:
            return
        tell(f"starting {len(self._worker_ids)} worker{'s' if len(self._worker_ids) > 1 else ''}")
        made = []
        for worker_id in self._worker_ids:
            token = self._token(programs.addresses.database_url, "worker", worker_id)
            made.append(programs.worker(worker_id, token, self.options.worker_arguments))
        self._supervisor.start(*made)

    def _choose_addresses(
        self,
    ) -> tuple[Addresses, dict[str, tuple[int, tuple[str, ...]]]]:
        """Return every address, and the embedded servers that some of them need."""
        wanted = self.options
        ports = self.folder.ports(("edge", "flower", "broker", "reservations"))
        broker, reservations = ports["broker"], ports["reservations"]
        embedded: dict[str, tuple[int, tuple[str, ...]]] = {}
        if wanted.broker_url is None or wanted.result_backend is None:
            embedded["broker"] = (broker, servers.KEEPS)
        if wanted.reservations_url is None:
            embedded["reservations"] = (reservations, servers.FORGETS)
        addresses = Addresses(
            broker_url=wanted.broker_url or servers.url(broker),
            result_backend=wanted.result_backend or servers.url(broker, 1),
            database_url=wanted.database_url or self.folder.database_url,
            reservations_url=wanted.reservations_url or servers.url(reservations),
            edge_port=wanted.port or ports["edge"],
            flower_port=ports["flower"] if wanted.flower else None,
        )
        return addresses, embedded

    def _token(self, database_url: str, kind: str, worker_id: str | None = None) -> Path:
        """Return the file of a token, made the first time the folder meets this database."""
        path = self.folder.token(worker_id or kind, database_url=database_url)
        if not path.exists():
            ledger = Ledger(database_url)
            try:
                _, text = Credentials(ledger).create(
                    kind, worker_id=worker_id, description=MADE_BY, now=datetime.now(UTC)
                )
            finally:
                ledger.close()
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        return path

    def report(self) -> dict[str, Any]:
        """Return what `drawbridge up --json` prints of a stack that is up."""
        if self._addresses is None or self.operator_token_file is None:
            raise RuntimeError("the stack is not up")
        addresses = self._addresses
        return {
            "edgeUrl": addresses.edge_url,
            "flowerUrl": addresses.flower_url,
            "brokerUrl": addresses.broker_url,
            "resultBackend": addresses.result_backend,
            "queue": self.options.queue,
            "operatorToken": self.operator_token_file.read_text(encoding="utf-8"),
            "reservationsUrl": addresses.reservations_url,
            "databaseUrl": addresses.database_url,
            "dataDir": str(self.folder.path),
            "workers": list(self._worker_ids),
            "pids": self._supervisor.pids,
            "logs": {name: str(self.folder.log(name)) for name in self._supervisor.pids},
        }

    def run(self) -> None:
        """Watch until told to stop; what dies is restarted, what keeps dying ends the stack."""
        while not self._stopping.wait(CHECK_S):
            self.check()

    def check(self) -> None:
        """Restart what has died; whoever does not `run` calls this now and then."""
        self._supervisor.check()

    def stop(self) -> None:
        """Bring everything down and let the folder go."""
        self._supervisor.stop()
        self._held.close()


def _silent(broker_url: str) -> str | None:
    """Say why a Celery broker cannot be reached, or None when it can."""
    with Celery(broker=broker_url, set_as_current=False) as app:
        connection = app.connection_for_read()
        try:
            connection.ensure_connection(max_retries=1, timeout=BROKER_S)
        except (OperationalError, *connection.connection_errors) as error:
            return str(error)
        finally:
            connection.release()
    return None


def _bridge_answers(broker_url: str) -> bool:
    """Tell whether any bridge answers a ping over the Celery broker."""
    with Celery(broker=broker_url, set_as_current=False) as app:
        try:
            return bool(app.control.ping(timeout=PING_S))
        except (OperationalError, *app.connection_for_read().connection_errors):
            return False
