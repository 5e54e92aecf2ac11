"""PostgreSQL dies, hangs, comes back, or comes back as a standby, under a ledger in use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from broker.errors import LedgerUnavailable
from broker.ledger import pools
from broker.ledger.driver import Call, Prepared
from broker.ledger.engine import Ledger
from broker.ledger.migrate import upgrade
from broker.ledger.models import BridgeStateRow
from tests.services import Postgres

pytestmark = [pytest.mark.faults, pytest.mark.postgres]


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """Give a PostgreSQL that the test may kill."""
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture
def ledger(postgres: Postgres) -> Iterator[Ledger]:
    upgrade(postgres.url())
    ledger = Ledger(postgres.url())
    yield ledger
    ledger.close()


def add_one(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(sa.update(BridgeStateRow).values(job_seq=BridgeStateRow.job_seq + 1))


def count(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return connection.scalar(sa.select(BridgeStateRow.job_seq)) or 0


def kill(postgres: Postgres) -> None:
    """Kill the server with its children, which hold the connections."""
    # Stopped first: a postmaster that sees its children die makes new ones, and they live on.
    os.kill(postgres.pid, signal.SIGSTOP)
    for child in psutil.Process(postgres.pid).children():
        child.kill()
    postgres.kill()


def test_a_killed_server_is_unavailable_and_its_return_heals_every_connection(
    postgres: Postgres, ledger: Ledger
):
    pool = [ledger.engine.connect() for _ in range(5)]
    for one in pool:
        one.close()
    add_one(ledger)
    kill(postgres)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            add_one(ledger)
        with pytest.raises(LedgerUnavailable):
            count(ledger)
    postgres.start()
    for expected in range(1, 8):
        assert count(ledger) == expected
        add_one(ledger)


def test_without_a_connection_and_a_server_each_way_in_is_unavailable(
    postgres: Postgres, ledger: Ledger
):
    one = sa.select(sa.literal(1).label("one"))
    call = Call(Prepared(one, ledger.engine.dialect, list(one.selected_columns)), {})
    assert ledger.at_once(call) == [[(1,)]]
    ledger.close()
    postgres.stop()
    for ask in (lambda: ledger.at_once(call), lambda: count(ledger), lambda: add_one(ledger)):
        with pytest.raises(LedgerUnavailable):
            ask()
    postgres.start()
    assert ledger.at_once(call) == [[(1,)]]


def test_a_server_killed_within_a_transaction_leaves_nothing_of_it(
    postgres: Postgres, ledger: Ledger
):
    def cut_off() -> None:
        with ledger.write() as connection:
            connection.execute(sa.update(BridgeStateRow).values(job_seq=99))
            kill(postgres)

    with pytest.raises(LedgerUnavailable):
        cut_off()
    postgres.start()
    assert count(ledger) == 0


def test_a_connection_ended_by_the_server_costs_nobody_an_error(postgres: Postgres, ledger: Ledger):
    add_one(ledger)
    with ledger.engine.connect() as other:
        other.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND application_name = 'drawbridge'"
            )
        )
    add_one(ledger)
    assert count(ledger) == 2


def test_a_statement_that_takes_too_long_is_ended(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pools, "STATEMENT_TIMEOUT_S", 1)
    ledger = Ledger(postgres.url())
    with pytest.raises(LedgerUnavailable), ledger.read() as connection:
        connection.execute(sa.text("SELECT pg_sleep(30)"))
    with ledger.read() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    ledger.close()


def test_one_of_ours_that_froze_in_a_transaction_holds_nobody_up(
    postgres: Postgres, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pools, "IDLE_IN_TRANSACTION_S", 1)
    frozen = Ledger(postgres.url())

    def freeze() -> None:
        with frozen.write() as connection:
            connection.execute(sa.update(BridgeStateRow).values(job_seq=99))
            # waits for that row
            add_one(ledger)

    with pytest.raises(LedgerUnavailable):
        freeze()
    assert count(ledger) == 1
    add_one(frozen)
    frozen.close()


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_zone_of_the_server_is_none_of_ours(postgres: Postgres, ledger: Ledger, zone: str):
    with ledger.write() as connection:
        connection.execute(sa.text(f"ALTER ROLE CURRENT_USER SET timezone = '{zone}'"))
    ledger.close()
    for moment in (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)):
        with ledger.write() as connection:
            connection.execute(sa.update(BridgeStateRow).values(last_created_at=moment))
        with ledger.read() as connection:
            assert connection.scalar(sa.select(BridgeStateRow.last_created_at)) == moment


def test_options_of_the_url_are_kept_beside_ours(postgres: Postgres):
    ledger = Ledger(f"{postgres.url()}?options=-c%20work_mem%3D3MB")
    with ledger.read() as connection:
        assert connection.scalar(sa.text("SHOW work_mem")) == "3MB"
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "10s"
    ledger.close()


def test_a_standby_is_read_but_not_written_and_its_promotion_heals(
    postgres: Postgres, ledger: Ledger
):
    add_one(ledger)
    postgres.stop()
    Path(postgres.folder, "data", "standby.signal").touch()
    postgres.start()
    for _ in range(2):
        assert count(ledger) == 1
        with pytest.raises(LedgerUnavailable):
            add_one(ledger)
    with ledger.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT pg_promote()"))
    add_one(ledger)
    assert count(ledger) == 2
