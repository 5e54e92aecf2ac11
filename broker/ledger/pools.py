"""How connections to SQLite and PostgreSQL are made, told how to behave, and kept in a pool."""

from __future__ import annotations

import select
import sqlite3
import time
from pathlib import Path
from typing import Any, Final, cast

import psycopg
import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from broker.errors import ConfigurationError
from broker.ledger.columns import JUST_AFTER, just_after_text

#: how long a writer waits for the one before it on SQLite
BUSY_TIMEOUT_S: Final = 10
#: how long a thread waits for a connection of the pool
POOL_TIMEOUT_S: Final = 5
#: how long PostgreSQL may take to let us in, to run one statement, and to acknowledge a packet
CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 10
#: after which PostgreSQL takes the locks from one of ours that froze in a transaction; reconcile
#: looks back further than that
IDLE_IN_TRANSACTION_S: Final = 15

#: a connection that lay idle for longer is asked whether it lives
IDLE_S: Final = 1.0
_USED_AT: Final = "ledger_used_at"

_MIN_SQLITE: Final = (3, 35)  # RETURNING
#: execution option: how long a write may wait; None for a read
PATIENCE: Final = "ledger_patience_s"
_UNTOLD: Final = object()


def sqlite(url: sa.URL, synchronous: str) -> sa.Engine:
    """Make the pool of a file, and the file."""
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
        connection.create_function(JUST_AFTER, 1, just_after_text, deterministic=True)

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # With a plain BEGIN the lock is taken by the first write, after the reads it rests on:
        # four processes lost 566 of 800 updates that way, and nobody was told (decision 33).
        patience_s = connection.get_execution_options().get(PATIENCE, BUSY_TIMEOUT_S)
        reads = patience_s is None
        # a connection keeps what it was told, and most are told the same again
        if connection.info.get(PATIENCE, _UNTOLD) != patience_s:
            connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reads else 'OFF'}")
            if not reads:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(patience_s * 1000)}")
            connection.info[PATIENCE] = patience_s
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


def postgresql(url: sa.URL) -> sa.Engine:
    """Make the pool of a server, which is not reached before it is used."""
    given = url.query.get("options", "")
    given = given if isinstance(given, str) else " ".join(given)
    engine = sa.create_engine(
        url,
        # One that is closed and opened again costs the server more than a claim does, and each
        # has statements of its own to prepare: those used last are used first, and all are kept.
        pool_size=30,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
        connect_args={
            "application_name": "drawbridge",
            "connect_timeout": CONNECT_TIMEOUT_S,
            "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,
            "options": _options(given),
        },
    )
    _ping_idle(engine)
    return engine


def _options(given: str) -> str:
    ours = {
        "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S}s",
        # Moments come in the session's zone: east of UTC the last ones of the year 9999 are in a
        # year that Python does not know, and whoever reads such a job fails.
        "timezone": "UTC",
    }
    return " ".join([given, *(f"-c {name}={value}" for name, value in ours.items())]).strip()


def _ping_idle(engine: sa.Engine) -> None:
    """Ask a connection whether it lives when it lay idle, or when its server has said something.

    A server that ends says so, or closes: unasked words on an idle connection mean no good.
    SQLAlchemy's pool_pre_ping asks at each checkout, one round trip of a transaction's eight.
    """

    @sa.event.listens_for(engine, "checkin")
    def returned(_connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info[_USED_AT] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def taken(
        connection: psycopg.Connection[Any],
        record: sa.pool.ConnectionPoolEntry,
        _proxy: object,
    ) -> None:
        used_at = record.info.get(_USED_AT)
        if used_at is None:
            return
        if time.monotonic() - used_at < IDLE_S and not _has_said_something(connection):
            return
        try:
            engine.dialect.do_ping(cast(sa.engine.interfaces.DBAPIConnection, connection))
        except psycopg.Error as error:
            # all that are older are gone too
            raise sa.exc.InvalidatePoolError from error


def _has_said_something(connection: psycopg.Connection[Any]) -> bool:
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
