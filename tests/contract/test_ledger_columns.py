"""What goes into a column of the ledger comes out again, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from broker.ledger.engine import Ledger
from broker.ledger.models import BridgeStateRow, WorkerRow

MOMENT = datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=UTC)


def keep(ledger: Ledger, hello: Any) -> Any:
    with ledger.write() as connection:
        connection.execute(
            sa.insert(WorkerRow).values(worker_id="w", first_seen_at=MOMENT, hello=hello)
        )
    with ledger.read() as connection:
        return connection.scalar(sa.select(WorkerRow.hello))


@pytest.mark.parametrize(
    "value",
    [
        {"nul": "a\x00b", "emoji": "\U0001f309", "text": "zß水", "quote": "'\";--"},
        {"lone surrogate": "\ud800"},
        {"big": 2**63 + 1, "small": -(10**40), "float": 0.1, "tiny": 5e-324, "true": True},
        {"nested": [{"null": None}, [], {}, [[["deep"]]]]},
        {"order": 1, "a": 2, "Order": 3},
        [],
        "text",
        0,
        False,
        "null",
    ],
)
def test_json_round_trip(ledger: Ledger, value: Any):
    assert keep(ledger, value) == value


def test_json_none_is_sql_null(ledger: Ledger):
    assert keep(ledger, None) is None
    with ledger.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM workers WHERE hello IS NULL")) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_json_that_is_none_is_refused_before_it_is_written(ledger: Ledger, value: Any):
    with pytest.raises(sa.exc.StatementError, match="not JSON compliant"):
        keep(ledger, value)
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(WorkerRow)) == 0


@pytest.mark.parametrize(
    "moment",
    [
        MOMENT,
        MOMENT.replace(microsecond=0),
        MOMENT.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_a_moment_comes_back_as_the_same_moment_in_utc(ledger: Ledger, moment: datetime):
    with ledger.write() as connection:
        connection.execute(sa.update(BridgeStateRow).values(last_created_at=moment))
        stored = connection.scalar(sa.select(BridgeStateRow.last_created_at))
    assert stored == moment
    assert stored is not None
    assert stored.tzinfo is UTC


def test_a_naive_moment_is_refused(ledger: Ledger):
    with pytest.raises(sa.exc.StatementError, match="naive"), ledger.write() as connection:
        connection.execute(
            sa.update(BridgeStateRow).values(last_created_at=MOMENT.replace(tzinfo=None))
        )


def test_moments_compare_in_sql_as_they_do_in_python(ledger: Ledger):
    near = [MOMENT.replace(microsecond=0) + timedelta(microseconds=n) for n in (0, 1, 999_999)]
    near += [near[0] + timedelta(seconds=1), near[0].astimezone(timezone(timedelta(hours=5)))]
    with ledger.write() as connection:
        connection.execute(
            sa.insert(WorkerRow),
            [{"worker_id": str(n), "first_seen_at": moment} for n, moment in enumerate(near)],
        )
        ordered = connection.scalars(
            sa.select(WorkerRow.first_seen_at).order_by(WorkerRow.first_seen_at)
        ).all()
        later = connection.scalars(
            sa.select(WorkerRow.worker_id).where(WorkerRow.first_seen_at > near[1])
        ).all()
    assert ordered == sorted(near)
    assert sorted(later) == ["2", "3"]
