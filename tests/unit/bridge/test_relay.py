"""How the outbox empties when Celery's stores do not always do what they are asked."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from broker.bridge.relay import IDLE_S, OUTAGE_S, WAITING_S, Relay
from broker.ledger import intake, outbox
from broker.ledger.engine import Ledger
from broker.ledger.models import OutboxRow
from broker.records import Effect, Job, NewJob
from tests.unit.bridge.conftest import NOW

IDS = [f"3fbb8d6a-51b1-4d5e-9f0f-0a9f6b1d3c1{n}" for n in range(3)]


class Celery:
    """Stands for settler, announcer and clock; tells what it was told, and fails when asked to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.fail: Callable[[Effect], Exception | None] = lambda _effect: None
        self.flush_error: Exception | None = None
        self.moment = NOW

    def settle(self, effect: Effect, job: Job, _envelope: Any) -> None:
        assert job.id == effect.job_id
        if (error := self.fail(effect)) is not None:
            raise error
        self.told.append((job.task_id[-1], effect.kind))

    def flush(self) -> None:
        if self.flush_error is not None:
            raise self.flush_error

    def now(self) -> datetime:
        return self.moment


@pytest.fixture
def celery() -> Celery:
    return Celery()


@pytest.fixture
def relay(ledger: Ledger, celery: Celery) -> Relay:
    return Relay(ledger, celery, celery, clock=celery, owner="r")  # type: ignore[arg-type]


@pytest.fixture
def write(ledger: Ledger, relay: Relay, celery: Celery) -> Callable[..., None]:
    """Write rows of the jobs 0, 1 and 2, whose own first rows are told already."""
    with ledger.write() as conn:
        intake.ingest(conn, [NewJob(task_id=i, queue="q", type="t") for i in IDS], NOW)
    celery.moment += timedelta(seconds=1)
    while relay.step() == 0:
        pass
    celery.told.clear()

    def rows(*kinds: tuple[int, str]) -> None:
        with ledger.write() as conn:
            outbox.insert(conn, [(IDS[job], (kind, {})) for job, kind in kinds], NOW)

    return rows


def undone(ledger: Ledger) -> list[tuple[str, int, bool]]:
    with ledger.read() as conn:
        query = sa.select(OutboxRow.kind, OutboxRow.tries, OutboxRow.parked_at).where(
            OutboxRow.done_at.is_(None)
        )
        return [(kind, tries, parked is not None) for kind, tries, parked in conn.execute(query)]


def test_rows_are_told_in_order_and_marked(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any
):
    rows = (0, "link"), (0, "chain"), (1, "store"), (0, "store"), (0, "event"), (1, "event")
    write(*rows)
    assert relay.step() == 0
    assert celery.told == [(str(job), kind) for job, kind in rows]
    assert undone(ledger) == []
    assert relay.step() == IDLE_S


def test_a_state_that_a_later_row_overwrites_is_not_stored(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any
):
    write((0, "state"), (0, "event"), (1, "state"), (0, "state"), (0, "store"))
    relay.step()
    assert celery.told == [("0", "event"), ("1", "state"), ("0", "store")]
    assert undone(ledger) == []


def test_an_outage_of_the_backend_counts_no_try_and_holds_only_what_needs_it(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any
):
    celery.fail = lambda effect: ConnectionError() if effect.kind == "store" else None
    write((0, "store"), (0, "event"), (1, "link"), (1, "store"), (2, "event"))
    relay.step()
    assert celery.told == [("1", "link"), ("2", "event")]
    assert undone(ledger) == [("store", 0, False), ("event", 0, False), ("store", 0, False)]
    assert relay.step() == WAITING_S
    celery.fail = lambda _effect: None
    celery.moment += timedelta(seconds=OUTAGE_S)
    relay.step()
    assert celery.told[2:] == [("0", "store"), ("0", "event"), ("1", "store")]


def test_an_outage_of_the_broker_does_not_keep_results_back(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any
):
    celery.flush_error = OperationalError()
    write((0, "store"), (0, "event"), (1, "store"), (1, "event"))
    relay.step()
    assert undone(ledger) == [("event", 0, False), ("event", 0, False)]


def test_a_row_that_is_refused_is_parked_after_twenty_tries_and_lets_the_next_pass(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any, caplog: pytest.LogCaptureFixture
):
    celery.fail = lambda effect: TypeError("no") if effect.kind == "link" else None
    write((0, "link"), (0, "store"), (1, "store"))
    for _ in range(outbox.TRIES_MAX):
        relay.step()
        celery.moment += timedelta(seconds=61)
    assert celery.told == [("1", "store")]
    assert undone(ledger) == [("link", outbox.TRIES_MAX, True), ("store", 0, False)]
    relay.step()
    assert celery.told[1:] == [("0", "store")]
    assert [m for m in caplog.messages if m.startswith("parked effect")]


def test_what_may_not_be_told_twice_is_marked_before_the_next_row_is_told(
    ledger: Ledger, relay: Relay, celery: Celery, write: Any
):
    class Killed(BaseException):
        """Stands for SIGKILL."""

    def kill(effect: Effect) -> Exception | None:
        if effect.kind == "chord":
            raise Killed
        return None

    celery.fail = kill
    write((0, "link"), (0, "link"), (0, "store"), (0, "chord"))
    with pytest.raises(Killed):
        relay.step()
    assert undone(ledger) == [("store", 0, False), ("chord", 0, False)]
    assert relay.step() == WAITING_S  # the dead relay's lock holds
    celery.fail = lambda _effect: None
    celery.moment += timedelta(seconds=61)
    relay.step()
    assert celery.told == [
        ("0", "link"), ("0", "link"), ("0", "store"), ("0", "store"), ("0", "chord"),
    ]  # fmt: skip


def test_it_knows_how_late_it_is(relay: Relay, celery: Celery, write: Any):
    assert relay.behind_s() == 0
    write((0, "store"))
    celery.moment = NOW + timedelta(seconds=7)
    assert relay.behind_s() == 7
