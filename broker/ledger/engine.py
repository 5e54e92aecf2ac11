"""The only one to know how a transaction on SQLite or PostgreSQL begins, ends and fails."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

import psycopg
import sqlalchemy as sa

from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger import driver, pools
from broker.ledger.pools import BUSY_TIMEOUT_S, PATIENCE
from broker.ledger.turns import Turns

_AWAY: Final = "The ledger does not answer; ask again"
_NO_TABLES: Final = "The ledger has no tables yet; run `drawbridge migrate`"

#: SQLite's own words for "not now"; its SQLITE_ERROR is a mistake in a statement and stays one
_SQLITE_AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    },
)
_PRIMARY_CODE: Final = 0xFF
#: a standby's "cannot write" and "cannot begin a transaction that may"
_POSTGRES_READ_ONLY: Final = frozenset({"25006", "0A000"})
_POSTGRES_NO_TABLE: Final = "42P01"

#: where a connection's prepared statements are remembered
_KNOWN: Final = "ledger_known"

Dialect = Literal["sqlite", "postgresql"]


def parse_url(text: str) -> sa.URL:
    """Return the URL of a ledger with its driver written out.

    Raises:
        ConfigurationError: not a URL, or of a database that is not supported.
    """
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ConfigurationError(
            "The database URL cannot be read; write sqlite:////path/to/ledger.sqlite3 "
            "or postgresql://user:password@host/database",
        ) from None
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ConfigurationError(
            f"The ledger lives in SQLite or PostgreSQL, not in {url.drivername!r}; "
            "write sqlite:////path/to/ledger.sqlite3 or postgresql://user:password@host/database",
        )
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigurationError(
            "The ledger needs a file that its processes share; "
            "write sqlite:////path/to/ledger.sqlite3",
        )
    # every process of a stack means the same file, wherever it was started
    return url.set(drivername="sqlite", database=str(Path(url.database).absolute()))


class Ledger:
    """One database: transactions that write, transactions that only read, nothing between."""

    def __init__(self, url: str, *, synchronous: str = "FULL") -> None:
        parsed = parse_url(url)
        self.dialect: Dialect
        if parsed.drivername == "sqlite":
            self.dialect = "sqlite"
            self.engine = pools.sqlite(parsed, synchronous)
        else:
            self.dialect = "postgresql"
            self.engine = pools.postgresql(parsed)
        self._here = threading.local()
        # SQLite's writers wait by sleeping ever longer; those of one process can queue up instead.
        self._writers = Turns()
        _forget_after_fork(self.engine)

    @contextmanager
    def write(self, *, patience_s: float = BUSY_TIMEOUT_S) -> Iterator[sa.Connection]:
        """Open a transaction, committed at the end of the block; may not be nested.

        On SQLite ``patience_s`` is how long it waits for the writer before it.

        Raises:
            LedgerUnavailable: the database is away or busy. Whether an unanswered commit happened
                is unknown, so whoever writes must be able to do it twice.
        """
        if self.dialect == "postgresql":
            with self._transaction(patience_s=patience_s) as connection:
                yield connection
            return
        self._refuse_nesting()
        if not self._writers.acquire(timeout_s=patience_s):
            raise LedgerUnavailable
        try:
            with self._transaction(patience_s=patience_s) as connection:
                yield connection
        finally:
            self._writers.release()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that cannot write and never waits for a writer; may not be nested.

        Raises:
            LedgerUnavailable: the database is away.
        """
        with self._transaction(patience_s=None) as connection:
            yield connection

    @contextmanager
    def glance(self) -> Iterator[sa.Connection]:
        """Open what one statement is read by; PostgreSQL is told of no transaction around it.

        Raises:
            LedgerUnavailable: as ``read`` does.
        """
        if self.dialect != "postgresql":
            with self.read() as connection:
                yield connection
            return
        with self._open(writes=False), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def at_once(self, *calls: driver.Call) -> list[list[driver.Row]]:
        """Run statements as one transaction, in one way there and back; PostgreSQL only.

        Raises:
            LedgerUnavailable: as ``write`` does.
        """
        with self._open(writes=True), closing(self._raw()) as connection:
            held = cast(psycopg.Connection[Any], connection.driver_connection)
            try:
                return driver.run(held, connection.info.setdefault(_KNOWN, set()), calls)
            except psycopg.Error as error:
                if gone := held.broken:
                    connection.invalidate(error)
                raise sa.exc.DBAPIError.instance(
                    None, None, error, psycopg.Error, connection_invalidated=gone,
                    dialect=self.engine.dialect,
                ) from error  # fmt: skip

    def _raw(self) -> sa.PoolProxiedConnection:
        try:
            return self.engine.raw_connection()
        except psycopg.OperationalError as error:
            # only what its own calls meet does SQLAlchemy tell in its own words
            raise LedgerUnavailable(_AWAY) from error

    def clock_ms(self) -> float:
        """Return the server's clock as epoch milliseconds; SQLite has this machine's.

        May be asked in the midst of a transaction.

        Raises:
            LedgerUnavailable: the database is away.
        """
        if self.dialect == "sqlite":
            return time.time() * 1000
        try:
            with self.engine.connect() as connection:
                found: datetime = connection.execute(
                    sa.select(sa.func.clock_timestamp())
                ).scalar_one()
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            raise LedgerUnavailable from error
        return found.timestamp() * 1000

    def close(self) -> None:
        """Close what the pool holds; a closed ledger opens again when it is used."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self, *, patience_s: float | None) -> Iterator[sa.Connection]:
        with self._open(writes=patience_s is not None), self.engine.connect() as connection:
            # psycopg sends READ ONLY with its BEGIN; SQLite is told in the event below.
            connection.execution_options(
                **{PATIENCE: patience_s, "postgresql_readonly": patience_s is None},
            )
            with connection.begin():
                yield connection

    @contextmanager
    def _open(self, *, writes: bool) -> Iterator[None]:
        """Be the one transaction of this thread, and say so when the database cannot serve."""
        self._refuse_nesting()
        self._here.open = True
        try:
            yield
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            if (reason := _away(error, writes=writes)) is None:
                raise
            if isinstance(error, sa.exc.DBAPIError) and _is_standby(error):
                # Behind the same address there may be a new primary; ours stay with the old one.
                self.engine.dispose()
            raise LedgerUnavailable(reason) from error
        finally:
            self._here.open = False

    def _refuse_nesting(self) -> None:
        if getattr(self._here, "open", False):
            raise RuntimeError("a transaction of this ledger is already open in this thread")


def _forget_after_fork(engine: sa.Engine) -> None:
    # A connection carried over a fork is one socket or one file lock with two owners.
    known = weakref.ref(engine)

    def forget() -> None:
        if (engine := known()) is not None:
            engine.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def _away(error: sa.exc.DBAPIError | sa.exc.TimeoutError, *, writes: bool) -> str | None:
    """Say why the ledger cannot serve, or None when it can and the statement is wrong."""
    if isinstance(error, sa.exc.TimeoutError):
        return "Every connection to the ledger is in use; ask again"
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
        if code == sqlite3.SQLITE_ERROR and str(cause).startswith("no such table"):
            return _NO_TABLES
        # In read() a refused write is our own mistake; in write() the disk turned read-only.
        away = code in _SQLITE_AWAY or (writes and code == sqlite3.SQLITE_READONLY)
        return _AWAY if away else None
    if getattr(cause, "sqlstate", None) == _POSTGRES_NO_TABLE:
        return _NO_TABLES
    gone = error.connection_invalidated or isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError
    )
    if gone or (writes and _is_standby(error)):
        return _AWAY
    return None


def _is_standby(error: sa.exc.DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _POSTGRES_READ_ONLY
