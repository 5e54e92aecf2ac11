"""The only one to know how a transaction on SQLite or PostgreSQL begins, ends and fails."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger.turns import Turns

#: how long a writer waits for the one before it on SQLite
BUSY_TIMEOUT_S: Final = 10
#: how long a thread waits for a connection of the pool
POOL_TIMEOUT_S: Final = 5
#: how long PostgreSQL may take to let us in, to run one statement, and to acknowledge a packet
CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 10

_MIN_SQLITE: Final = (3, 35)  # RETURNING
#: execution option: how long a write may wait; None for a read
_PATIENCE_S: Final = "ledger_patience_s"
_UNTOLD: Final = object()
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
            self.engine = _sqlite(parsed, synchronous)
        else:
            self.dialect = "postgresql"
            self.engine = _postgresql(parsed)
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

    def close(self) -> None:
        """Close what the pool holds; a closed ledger opens again when it is used."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self, *, patience_s: float | None) -> Iterator[sa.Connection]:
        self._refuse_nesting()
        self._here.open = True
        try:
            with self.engine.connect() as connection:
                # psycopg sends READ ONLY with its BEGIN; SQLite is told in the event below.
                connection.execution_options(
                    **{_PATIENCE_S: patience_s, "postgresql_readonly": patience_s is None},
                )
                with connection.begin():
                    yield connection
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            if (reason := _away(error, writes=patience_s is not None)) is None:
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


def _sqlite(url: sa.URL, synchronous: str) -> sa.Engine:
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise ConfigurationError(
            f"This Python carries SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed",
        )
    if synchronous not in {"FULL", "NORMAL"}:
        raise ConfigurationError(f"SQLite's synchronous is FULL or NORMAL, not {synchronous!r}")
    _make_file(Path(str(url.database)))
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=8,
        max_overflow=8,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        for attempt in _until_not_busy():
            with attempt:
                connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # With a plain BEGIN the lock is taken by the first write, after the reads it rests on:
        # four processes lost 566 of 800 updates that way, and nobody was told (decision 33).
        patience_s = connection.get_execution_options().get(_PATIENCE_S, BUSY_TIMEOUT_S)
        reads = patience_s is None
        # a connection keeps what it was told, and most are told the same again
        if connection.info.get(_PATIENCE_S, _UNTOLD) != patience_s:
            connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reads else 'OFF'}")
            if not reads:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(patience_s * 1000)}")
            connection.info[_PATIENCE_S] = patience_s
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _until_not_busy() -> Retrying:
    # Of several processes that open a new file at once SQLite lets one switch it to WAL and tells
    # the others at once that it is busy, whatever busy_timeout says.
    return Retrying(
        retry=retry_if_exception(
            lambda error: getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY,
        ),
        wait=wait_random(0.001, 0.02),
        stop=stop_after_delay(BUSY_TIMEOUT_S),
        reraise=True,
    )


def _make_file(path: Path) -> None:
    # Payloads and hashes of tokens lie here: for the owner's eyes, whatever the umask.
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"The ledger's file {path} cannot be made: {error.strerror}",
        ) from error


def _postgresql(url: sa.URL) -> sa.Engine:
    given = url.query.get("options", "")
    given = given if isinstance(given, str) else " ".join(given)
    return sa.create_engine(
        url,
        pool_size=10,
        max_overflow=20,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "application_name": "drawbridge",
            "connect_timeout": CONNECT_TIMEOUT_S,
            "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,
            "options": f"{given} -c statement_timeout={STATEMENT_TIMEOUT_S}s".strip(),
        },
    )


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
