"""The product's own stores on media in memory; each call is two stops of a schedule."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import fakeredis
import redis
import sqlalchemy as sa

from broker.errors import LedgerUnavailable
from broker.ledger import migrate
from broker.ledger.columns import JUST_AFTER, just_after_text
from broker.ledger.engine import Ledger
from broker.ledger.turns import Turns
from tests.simulation.scheduler import Schedule

BEGINNING: Final = datetime(2030, 1, 1, tzinfo=UTC)


class VirtualClock:
    """A clock that somebody moves."""

    def __init__(self) -> None:
        self.moment = BEGINNING

    def now(self) -> datetime:
        """Return the moment it is set to."""
        return self.moment

    def now_ms(self) -> int:
        """Return it as the scripts in Redis count."""
        return int(self.moment.timestamp() * 1000)

    def advance(self, seconds: float) -> None:
        """Move it on."""
        self.moment += timedelta(seconds=seconds)


@contextmanager
def at(clock: VirtualClock) -> Iterator[None]:
    """Let everything that asks for the time be told the clock's: lapses, pauses, caches.

    Else a busy machine would make another run of the same seed.
    """
    with (
        patch("time.time", lambda: clock.now().timestamp()),
        patch("time.monotonic", lambda: clock.now().timestamp()),
    ):
        yield


@cache
def memory() -> sa.Engine:
    """Return a ledger in memory; one connection, since only one actor runs at a time.

    One for all runs of a process: the statements it has prepared are half of what a run costs.
    """
    engine = sa.create_engine(
        "sqlite://",
        poolclass=sa.StaticPool,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.create_function(JUST_AFTER, 1, just_after_text, deterministic=True)

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@cache
def migrated() -> sqlite3.Connection:
    """Return what migrations make, as a ledger to copy."""
    made = sqlite3.connect(":memory:", check_same_thread=False)
    with TemporaryDirectory() as folder:
        path = f"{folder}/ledger.db"
        migrate.upgrade(f"sqlite:///{path}")
        with closing(sqlite3.connect(path)) as file:
            file.backup(made)
    return made


def emptied() -> sa.Engine:
    """Return the ledger in memory without jobs."""
    with closing(memory().raw_connection()) as connection:
        target: Any = connection.driver_connection
        migrated().backup(target)
    return memory()


class SteppedLedger(Ledger):
    """A ledger whose transactions are one step each: begun, and committed or not."""

    def __init__(self, engine: sa.Engine, schedule: Schedule) -> None:
        self.dialect = "sqlite"
        self.engine = engine
        self.schedule = schedule
        self._here = threading.local()
        self._writers = Turns()

    @contextmanager
    def write(self, *, patience_s: float = 1.0) -> Iterator[sa.Connection]:
        """Write, with a stop before the transaction and one after its commit."""
        self.schedule.step("ledger.write", "before", LedgerUnavailable)
        with super().write(patience_s=patience_s) as conn:
            yield conn
        self.schedule.step("ledger.write", "after", LedgerUnavailable)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Read, with a stop before."""
        self.schedule.step("ledger.read", "before", LedgerUnavailable)
        with super().read() as conn:
            yield conn


class SteppedRedis(fakeredis.FakeRedis):
    """A Redis whose commands are one step each: sent, and answered or not."""

    schedule: Schedule
    #: which Redis it is, for the names of steps
    role: str
    #: scripts by their digest
    scripts: Mapping[str, str]

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command between two stops."""
        what = self.scripts.get(str(args[1]), args[0]) if args[0] == "EVALSHA" else args[0]
        name = f"{self.role}.{what}"
        self.schedule.step(name, "before", redis.ConnectionError)
        answer = super().execute_command(*args, **options)
        self.schedule.step(name, "after", redis.ConnectionError)
        return answer


def stepped_redis(
    server: fakeredis.FakeServer, schedule: Schedule, role: str, *, decode: bool = True
) -> SteppedRedis:
    """Connect to a server in memory."""
    client = SteppedRedis(server=server, decode_responses=decode)
    client.schedule, client.role, client.scripts = schedule, role, {}
    return client
