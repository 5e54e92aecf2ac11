"""Statements by libpq alone: one transaction each time, and a connection that can be trusted."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any, Final

import pytest
import sqlalchemy as sa

from broker.errors import LedgerUnavailable
from broker.ledger.driver import Call, Prepared
from broker.ledger.engine import _KNOWN, Ledger
from tests.services import until

pytestmark = pytest.mark.postgres

NUMBERS: Final = sa.table("numbers", sa.column("n", sa.Integer), sa.column("text", sa.Text))
TEXTS: Final = sa.ARRAY(sa.Text)
KILL: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture
def ledger_url(postgres_ledger_url: str) -> str:
    """Give the ledger these statements are for."""
    return postgres_ledger_url


@pytest.fixture(autouse=True)
def table(ledger: Ledger) -> None:
    """Make a table that refuses a number which is there."""
    with ledger.write() as conn:
        conn.execute(sa.text("CREATE TABLE numbers (n integer PRIMARY KEY, text text)"))


def insert(ledger: Ledger, n: int, text: str | None = None) -> Call:
    statement = NUMBERS.insert().values(n=sa.bindparam("n"), text=sa.bindparam("text"))
    returning = statement.returning(NUMBERS.c.n, NUMBERS.c.text)
    return Call(Prepared(returning, ledger.engine.dialect, list(NUMBERS.c)), {"n": n, "text": text})


def echo(ledger: Ledger, *columns: Any, **given: Any) -> Call:
    return Call(Prepared(sa.select(*columns), ledger.engine.dialect, columns), given)


def kill(ledger: Ledger) -> Any:
    with ledger.write() as conn:  # the view of others lasts as long as a transaction
        return conn.scalar(sa.text(KILL))


def numbers(ledger: Ledger) -> list[int]:
    with ledger.read() as conn:
        return list(conn.scalars(sa.select(NUMBERS.c.n).order_by(NUMBERS.c.n)))


@pytest.mark.parametrize("failing", [0, 1])
def test_several_are_one_transaction(ledger: Ledger, failing: int) -> None:
    ledger.at_once(insert(ledger, 1))
    calls = [insert(ledger, 2), insert(ledger, 3)]
    calls[failing] = insert(ledger, 1)
    with pytest.raises(sa.exc.IntegrityError):
        ledger.at_once(*calls)
    assert numbers(ledger) == [1]
    # the connection is as good as before
    assert ledger.at_once(insert(ledger, 2, "b"), insert(ledger, 3)) == [[(2, "b")], [(3, None)]]
    assert numbers(ledger) == [1, 2, 3]


def test_values_come_back_as_they_went(ledger: Ledger) -> None:
    texts = ["", "NULL", None, '"', "\\", '\\"', "{a,b}", "ü\n\U0001f600", " x "]
    assert ledger.at_once(
        echo(ledger, sa.bindparam("texts", type_=TEXTS).label("texts"), texts=texts)
    ) == [[(texts,)]]
    # more than the buffers of a socket hold, both ways
    long = "x" * 20_000_000
    assert ledger.at_once(insert(ledger, 1, long), insert(ledger, 2, long)) == [
        [(1, long)], [(2, long)],
    ]  # fmt: skip


@pytest.mark.parametrize("together", [1, 2])
def test_a_server_that_forgot_its_statements_is_told_them_again(
    ledger: Ledger, together: int
) -> None:
    ledger.at_once(*(insert(ledger, n) for n in range(together)))
    with ledger.write() as conn:
        conn.execute(sa.text("DEALLOCATE ALL"))
    ledger.at_once(*(insert(ledger, 10 + n) for n in range(together)))
    assert len(numbers(ledger)) == 2 * together


def test_a_server_that_knows_a_statement_already_is_no_error(ledger: Ledger) -> None:
    assert ledger.at_once(insert(ledger, 1)) == [[(1, None)]]
    with closing(ledger.engine.raw_connection()) as connection:
        assert connection.info[_KNOWN]
        connection.info[_KNOWN].clear()
    assert ledger.at_once(insert(ledger, 2), insert(ledger, 3)) == [[(2, None)], [(3, None)]]


@pytest.mark.parametrize("together", [1, 2])
def test_a_connection_that_is_cut_in_the_middle_is_given_up(ledger: Ledger, together: int) -> None:
    failed: list[Exception] = []
    sleep = echo(ledger, sa.func.pg_sleep(sa.bindparam("s", type_=sa.Float)).label("s"), s=8.0)

    def run() -> None:
        try:
            ledger.at_once(*[insert(ledger, 1), sleep][-together:])
        except LedgerUnavailable as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: kill(ledger), 30, what="it sleeps")
    thread.join()
    assert len(failed) == 1
    assert numbers(ledger) == []
    assert ledger.at_once(insert(ledger, 1), insert(ledger, 2)) == [[(1, None)], [(2, None)]]
