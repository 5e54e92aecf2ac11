"""Attacks on what is written down: changing it, taking it out, flooding it; on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from broker.errors import LedgerUnavailable
from broker.ledger import audit
from broker.ledger.audit import Act, Verified
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.policy import Policy
from edge_api.refusals import BURST, EVERY_S, SAME_S, Refusals

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    made = Ledger(ledger_url, synchronous="NORMAL")
    yield made
    made.close()


def verified(ledger: Ledger, expect: tuple[int, str] | None = None) -> Verified:
    with ledger.read() as conn:
        return audit.verify(conn, expect=expect)


def entries(ledger: Ledger) -> list[audit.Entry]:
    with ledger.read() as conn:
        return audit.newest(conn, action=None, since=None, limit=1000)


def write(ledger: Ledger, number: int) -> None:
    with ledger.write() as conn:
        audit.append(conn, Act(action="a", actor="x", detail={"n": number}), NOW)


TAMPERING = {
    "changed": "UPDATE audit SET detail = '{\"n\": 9}' WHERE seq = 3",
    "backdated": "UPDATE audit SET at = '2026-07-01T11:00:00.000000+00:00' WHERE seq = 3",
    "spoilt": "UPDATE audit SET detail = 'no json', at = 'never' WHERE seq = 3",
    "first removed": "DELETE FROM audit WHERE seq = 1",
    "removed": "DELETE FROM audit WHERE seq = 3",
    "last removed": "DELETE FROM audit WHERE seq = 5",
    "all removed": "DELETE FROM audit",
    "swapped": "UPDATE audit SET seq = CASE seq WHEN 2 THEN 30 WHEN 3 THEN 20 END "
    "WHERE seq IN (2, 3); UPDATE audit SET seq = seq / 10 WHERE seq > 10",
    "closed up": "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4; "
    "UPDATE audit SET seq = 4 WHERE seq = 5; UPDATE audit_head SET seq = 4",
    "head put back": "UPDATE audit_head SET seq = 4",
    "head removed": "DELETE FROM audit_head",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_what_is_changed_afterwards_shows(ledger: Ledger, how: str) -> None:
    for number in range(5):
        write(ledger, number)
    assert verified(ledger).faults == ()
    with ledger.write() as conn:
        for statement in TAMPERING[how].split("; "):
            conn.execute(sa.text(statement.replace(":", "\\:")))
    assert verified(ledger).faults


def test_a_chain_made_anew_shows_by_a_head_noted_before(ledger: Ledger) -> None:
    for number in range(3):
        write(ledger, number)
    seq, _, digest = verified(ledger).head.partition(":")
    assert verified(ledger, (int(seq), digest)).faults == ()
    with ledger.write() as conn:
        conn.execute(sa.text("DELETE FROM audit"))
        conn.execute(audit.head.update().values(seq=0, digest=audit.START))
    for number in range(5):
        write(ledger, number + 10)
    assert verified(ledger).faults == ()
    assert verified(ledger, (int(seq), digest)).faults == (
        "record 3 is not the one that was noted",
    )


def test_records_written_at_once_stand_in_one_line(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write(ledger, number), range(40)))
    assert (verified(ledger).records, verified(ledger).faults) == (40, ())


def test_an_act_and_its_record_are_one(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials(ledger)
    made, _ = credentials.create("worker", worker_id="w", created_by="op", source="::1", now=NOW)
    credentials.allow(made.id, Policy(types=("echo",)), changed_by="op", now=NOW)
    new, _ = credentials.rotate(made.id, overlap=timedelta(0), rotated_by="op", now=NOW)
    for _ in range(2):
        credentials.revoke(new.id, revoked_by="op", now=NOW)
    acts = [one.act for one in reversed(entries(ledger))]
    told = [(act.action, act.object) for act in acts]
    assert told == [
        ("token.create", made.id), ("token.allow", made.id), ("token.rotate", new.id),
        ("token.revoke", new.id),
    ]  # fmt: skip
    assert {act.actor for act in acts} == {"op"}
    assert acts[0].source == "::1"
    assert (acts[1].detail["before"]["types"], acts[1].detail["after"]["types"]) == (None, ["echo"])

    def full(*_: object) -> None:
        raise LedgerUnavailable

    monkeypatch.setattr(audit, "append", full)
    with pytest.raises(LedgerUnavailable):
        credentials.create("operator", now=NOW)
    assert credentials.list(kind="operator") == []


def test_a_flood_of_refusals_is_counted_and_not_kept(ledger: Ledger) -> None:
    at = [0.0]
    refusals = Refusals(ledger, timer=lambda: at[0])

    def refuse(source: str) -> None:
        refusals.note("unknown", credential="x" * 12, source=source, route="/r", now=NOW)

    for number in range(1000):
        refuse(f"192.0.2.{number % 200}")
    assert len(entries(ledger)) == BURST
    assert refusals.left_out == 1000 - BURST
    # what was left out is told by the next, and time makes room for one
    at[0] += SAME_S + EVERY_S
    refuse("192.0.2.1")
    assert entries(ledger)[0].act.detail["leftOut"] == 1000 - BURST
    # the same again within a minute is only counted, and the count survives the end
    refuse("192.0.2.1")
    refusals.close(NOW)
    refusals.close(NOW)
    assert entries(ledger)[0].act.detail == {"leftOut": 1}
    assert len(entries(ledger)) == BURST + 2
    assert verified(ledger).faults == ()


def test_a_ledger_that_is_away_refuses_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = Refusals(ledger)

    def away(**_: object) -> None:
        raise LedgerUnavailable

    monkeypatch.setattr(ledger, "write", away)
    for number in range(3):
        refusals.note("unknown", credential=None, source=str(number), route="/r", now=NOW)
    assert refusals.left_out == 3
    monkeypatch.undo()
    refusals.close(NOW)
    assert [one.act.detail for one in entries(ledger)] == [{"leftOut": 3}]
