"""A ledger's transactions: what they promise on both databases, and where the two part."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger.engine import Ledger, parse_url
from broker.ledger.migrate import upgrade
from broker.ledger.models import BridgeStateRow, JobRow
from tests.services import free_port

PROCESSES = 4
UPDATES = 50

#: reads a number, thinks, writes the next one: as every promise of the ledger does
COUNTER = """
import sys
import sqlalchemy as sa
from broker.ledger.engine import Ledger
from broker.ledger.models import BridgeStateRow

ledger = Ledger(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with ledger.write() as connection:
        number = connection.scalar(sa.select(BridgeStateRow.job_seq))
        connection.execute(sa.update(BridgeStateRow).values(job_seq=number + 1))
"""

OPENER = """
import sys
import sqlalchemy as sa
from broker.ledger.engine import Ledger

ledger = Ledger(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
with ledger.read() as connection:
    print(connection.scalar(sa.text("PRAGMA journal_mode")))
"""

HOLDER = """
import sys
from broker.ledger.engine import Ledger

with Ledger(sys.argv[1]).write():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def children(script: str, *arguments: str, number: int) -> list[subprocess.Popen[str]]:
    """Start processes that wait for a line before they do what they are for."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    for child in started:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    return started


def let_go(started: list[subprocess.Popen[str]]) -> list[str]:
    """Let them go all at once and return what each said."""
    for child in started:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60) for child in started]
    assert [(child.returncode, err) for child, (_, err) in zip(started, said, strict=True)] == [
        (0, "")
    ] * len(started)
    return [out for out, _ in said]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Ledger]:
    upgrade(f"sqlite:///{tmp_path}/ledger.sqlite3")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    yield ledger
    ledger.close()


def count(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return connection.scalar(sa.select(BridgeStateRow.job_seq)) or 0


def set_count(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.update(BridgeStateRow).values(job_seq=number))


def test_a_block_that_ends_is_committed(ledger: Ledger):
    with ledger.write() as connection:
        set_count(connection, 7)
    assert count(ledger) == 7


def test_a_block_that_raises_leaves_nothing(ledger: Ledger):
    def fail() -> None:
        with ledger.write() as connection:
            set_count(connection, 7)
            raise KeyError("reason of the caller's own")

    with pytest.raises(KeyError):
        fail()
    assert count(ledger) == 0
    with ledger.write() as connection:
        set_count(connection, 8)
    assert count(ledger) == 8


def test_read_cannot_write_and_that_is_a_mistake_not_an_outage(ledger: Ledger):
    with pytest.raises(sa.exc.DBAPIError, match=r"read-?only"), ledger.read() as connection:
        set_count(connection, 7)
    with ledger.write() as connection:
        set_count(connection, 8)
    assert count(ledger) == 8


@pytest.mark.parametrize("outer", ["read", "glance", "write"])
@pytest.mark.parametrize("inner", ["read", "glance", "write"])
def test_transactions_do_not_nest_in_a_thread(ledger: Ledger, outer: str, inner: str):
    with (
        getattr(ledger, outer)() as connection,
        pytest.raises(RuntimeError, match="already open"),
        getattr(ledger, inner)(),
    ):
        pass
    assert connection.closed
    with ThreadPoolExecutor(1) as pool, getattr(ledger, outer)():
        assert pool.submit(count, ledger).result(timeout=20) == 0


def test_a_glance_sees_what_a_read_sees_and_leaves_its_connection_as_it_was(ledger: Ledger):
    for number in (7, 8):
        with ledger.write() as connection:
            set_count(connection, number)
        with ledger.glance() as connection:
            assert connection.scalar(sa.text("SELECT job_seq FROM bridge_state")) == number
        # the same connection of the pool, and a transaction once more
        with suppress(KeyError), ledger.write() as connection:
            set_count(connection, 9)
            raise KeyError
        assert count(ledger) == number


def test_a_reader_neither_waits_for_a_writer_nor_sees_it(ledger: Ledger):
    with ThreadPoolExecutor(1) as pool:
        with ledger.write() as connection:
            set_count(connection, 7)
            assert pool.submit(count, ledger).result(timeout=3) == 0
        assert count(ledger) == 7


def test_a_wrong_statement_is_not_an_outage(ledger: Ledger):
    with (
        pytest.raises(sa.exc.DBAPIError) as raised,
        ledger.read() as connection,
    ):
        connection.execute(sa.text("SELECT nothing FROM bridge_state"))
    assert not isinstance(raised.value, LedgerUnavailable)
    assert count(ledger) == 0


def test_a_broken_constraint_is_told_as_such(ledger: Ledger):
    with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
        connection.execute(
            sa.text("INSERT INTO bridge_state (id, job_seq, last_created_at) VALUES (1, 0, NULL)")
        )
    assert count(ledger) == 0


def test_a_statement_that_fails_does_not_tell_its_values(ledger: Ledger):
    with pytest.raises(sa.exc.IntegrityError) as raised, ledger.write() as connection:
        connection.execute(sa.insert(BridgeStateRow).values(id=1, job_seq=424242))
    assert "424242" not in str(raised.value.args) or ledger.dialect == "postgresql"
    assert "424242" not in str(raised.value).partition("[SQL")[2]


def test_foreign_keys_hold(ledger: Ledger):
    with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO attempts (job_id, fence, attempt, run, worker_id, lease_id,"
                " lease_seconds, started_at)"
                " VALUES ('nobody', 1, 1, 1, 'w', 'l', 60, '2026-01-01 00:00:00')"
            )
        )


def test_a_ledger_without_tables_says_what_to_do(database_url: str):
    ledger = Ledger(database_url)
    with pytest.raises(LedgerUnavailable, match="drawbridge migrate"), ledger.read() as connection:
        connection.execute(sa.select(JobRow.id))
    ledger.close()


def test_when_every_connection_is_in_use_the_ledger_is_unavailable(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledger.engine.pool, "_timeout", 0.05)
    pool = ledger.engine.pool
    assert isinstance(pool, sa.QueuePool)
    most = pool.size() + pool._max_overflow
    held = [ledger.engine.connect() for _ in range(most)]
    with pytest.raises(LedgerUnavailable, match="in use"), ledger.read():
        pass
    for one in held:
        one.close()
    assert count(ledger) == 0


def test_a_closed_ledger_opens_again(ledger: Ledger):
    ledger.close()
    ledger.close()
    assert count(ledger) == 0


def test_no_update_of_several_processes_is_lost_on_sqlite(sqlite: Ledger):
    url = str(sqlite.engine.url)
    let_go(children(COUNTER, url, str(UPDATES), number=PROCESSES))
    assert count(sqlite) == PROCESSES * UPDATES


def test_no_update_of_several_threads_is_lost_on_sqlite(sqlite: Ledger):
    def work() -> None:
        for _ in range(UPDATES):
            with sqlite.write() as connection:
                set_count(connection, connection.scalar(sa.select(BridgeStateRow.job_seq)) + 1)

    with ThreadPoolExecutor(20) as pool:
        for done in [pool.submit(work) for _ in range(20)]:
            done.result()
    assert count(sqlite) == 20 * UPDATES


def test_processes_that_open_a_new_sqlite_ledger_at_once_all_get_wal(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    assert let_go(children(OPENER, url, number=6)) == ["wal\n"] * 6


def test_a_writer_waits_for_another_process_only_as_long_as_it_has_patience(sqlite: Ledger):
    (holder,) = children(HOLDER, str(sqlite.engine.url), number=1)
    with pytest.raises(LedgerUnavailable), sqlite.write(patience_s=0.01):
        pass
    assert count(sqlite) == 0
    let_go([holder])
    with sqlite.write(patience_s=0.01) as connection:
        set_count(connection, 1)
    assert count(sqlite) == 1


def test_a_writer_waits_for_another_thread_only_as_long_as_it_has_patience(sqlite: Ledger):
    def impatient() -> str:
        try:
            with sqlite.write(patience_s=0.01):
                return "came in"
        except LedgerUnavailable:
            return "went away"

    with ThreadPoolExecutor(1) as pool:
        with sqlite.write():
            assert pool.submit(impatient).result(timeout=5) == "went away"
        assert pool.submit(impatient).result(timeout=5) == "came in"


def test_sqlite_is_set_up_for_promises_that_survive_a_power_cut(tmp_path: Path):
    for synchronous, number in (("FULL", 2), ("NORMAL", 1)):
        ledger = Ledger(f"sqlite:///{tmp_path}/{synchronous}.sqlite3", synchronous=synchronous)
        with ledger.read() as connection:
            assert connection.scalar(sa.text("PRAGMA synchronous")) == number
            assert connection.scalar(sa.text("PRAGMA foreign_keys")) == 1
        ledger.close()
    with pytest.raises(ConfigurationError, match="FULL or NORMAL"):
        Ledger(f"sqlite:///{tmp_path}/off.sqlite3", synchronous="OFF")


def test_a_sqlite_ledger_is_for_its_owners_eyes(tmp_path: Path):
    ledger = Ledger(f"sqlite:///{tmp_path}/deep/down/ledger.sqlite3")
    with ledger.write() as connection:
        connection.execute(sa.text("CREATE TABLE t (x int)"))
        files = {path.name: path.stat() for path in (tmp_path / "deep/down").iterdir()}
    assert {stat.S_IMODE(one.st_mode) for one in files.values()} == {0o600}
    assert set(files) == {"ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm"}
    assert stat.S_IMODE((tmp_path / "deep/down").stat().st_mode) == 0o700
    ledger.close()


def test_a_forked_child_does_not_use_its_parents_connections(sqlite: Ledger):
    script = """
import os, sys
import sqlalchemy as sa
from broker.ledger.engine import Ledger

ledger = Ledger(sys.argv[1])
with ledger.read() as connection:
    before = connection.connection.dbapi_connection
child = os.fork()
if not child:
    with ledger.read() as connection:
        os._exit(connection.connection.dbapi_connection is before)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(sqlite.engine.url)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize(
    "url, driver",
    [
        ("sqlite:////a/b", "sqlite"),
        ("sqlite+pysqlite:///b", "sqlite"),
        ("postgres://h/d", "postgresql+psycopg"),
        ("postgresql://u:p@h:1/d", "postgresql+psycopg"),
        ("postgresql+psycopg://h/d?sslmode=require", "postgresql+psycopg"),
    ],
)
def test_urls_of_supported_databases(url: str, driver: str):
    assert parse_url(url).drivername == driver


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://h/d",
        "postgresql+asyncpg://h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_other_urls_are_refused_with_the_way_out(url: str):
    with pytest.raises(ConfigurationError, match=r"write sqlite:////path") as raised:
        parse_url(url)
    assert "\n" not in raised.value.message


def test_a_folder_that_cannot_be_made_is_a_matter_of_configuration(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.sqlite3")


def test_threads_that_wait_to_write_are_served_in_turn(sqlite: Ledger):
    order: list[int] = []

    def queue_up(number: int) -> None:
        with sqlite.write():
            order.append(number)

    threads = [threading.Thread(target=queue_up, args=(number,)) for number in range(8)]
    with sqlite.write():
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(sqlite._writers._waiting) < number:
                thread.join(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_its_clock_is_read_in_the_midst_of_a_transaction(ledger: Ledger):
    before = time.time() * 1000
    with ledger.write():
        found = ledger.clock_ms()
    # both clocks are this machine's
    assert before - 50 <= found <= time.time() * 1000 + 50


def test_the_clock_of_a_server_that_is_away_is_not_known():
    ledger = Ledger(f"postgresql://drawbridge@127.0.0.1:{free_port()}/none")
    with pytest.raises(LedgerUnavailable):
        ledger.clock_ms()
    ledger.close()
