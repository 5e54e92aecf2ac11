"""Scripts about who holds a job, until when, and what falls due."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.policy import Lane
from broker.reservations.shapes import Due, Placement, Renewed
from broker.reservations.store import EXPIRING_AGAIN_MS, GRANT_HOLD_MS, Reservations
from broker.states import Index
from tests.contract.scripts.kit import (
    CODEX,
    ECHO,
    START,
    Moment,
    Q,
    confirm,
    everything,
    hash_of,
    ready,
    renew,
    reserved,
    scheduled,
    take,
    where,
)

# -- reserve and heads ------------------------------------------------------------------------


def test_reserve_takes_the_best_of_all_lanes(store: Reservations):
    third = Lane(Q, "third", None, ())
    store.admit(
        Q,
        [
            ready(1), ready(2, lane=CODEX, priority=5), ready(3, priority=5), ready(4, lane=third),
            ready(5, priority=-1), ready(6, lane=third, priority=2**31 - 1),
        ],
    )  # fmt: skip
    assert store.head(Q, lambda _: True) == (-(2**31 - 1), ready(6).member)
    assert take(store) == ("job6",)
    assert take(store, limit=3) == ("job2", "job3", "job1")
    assert take(store, limit=9) == ("job4", "job5")
    assert take(store) == ()
    assert store.head(Q, lambda _: True) is None


def test_reserve_looks_only_at_lanes_it_was_given(store: Reservations):
    store.admit(Q, [ready(1, priority=9), ready(2, lane=CODEX)])
    only = store.reserve(Q, CODEX.__eq__, lease_id="L", worker_id="w", limit=5)
    assert only.ids == ("job2",)
    assert store.reserve(Q, lambda _: False, lease_id="L", worker_id="w", limit=5).ids == ()
    assert store.head(Q, lambda _: False) is None


def test_reserve_holds_for_as_long_as_the_ledger_may_take(store: Reservations, moment: Moment):
    store.admit(Q, [ready(1)])
    held = store.reserve(Q, lambda _: True, lease_id="L", worker_id="w")
    assert (held.now_ms, held.overdue, held.ids) == (START, 0, ("job1",))
    assert where(store, 1) == {Index.GRANTING: START + GRANT_HOLD_MS}
    assert renew(store, 1) is None, "not confirmed: only the ledger can say"
    moment.now += GRANT_HOLD_MS
    assert store.reserve(Q, lambda _: True, lease_id="M", worker_id="w").overdue == 1


def test_reserve_again_holds_another(store: Reservations):
    store.admit(Q, [ready(1), ready(2)])
    assert take(store) == ("job1",)
    assert take(store) == ("job2",)


def test_reserve_counts_what_is_overdue(store: Reservations, moment: Moment):
    late = reserved(3, START, index=Index.GRANTING)
    store.admit(Q, [reserved(1, START), reserved(2, START + 1), late])
    assert store.reserve(Q, lambda _: True, lease_id="L", worker_id="w").overdue == 2
    moment.now += 1
    assert store.reserve(Q, lambda _: True, lease_id="L", worker_id="w").overdue == 3


@pytest.mark.parametrize("call", ["reserve", "heads"])
def test_a_look_at_the_lanes_makes_due_jobs_ready(
    store: Reservations, moment: Moment, heard: Any, call: str
):
    store.admit(Q, [scheduled(1, START + 5), scheduled(2, START + 6, lane=CODEX)])
    look = (lambda: take(store)) if call == "reserve" else (lambda: store.head(Q, lambda _: True))
    assert not look()
    moment.now += 5
    assert look()
    assert list(where(store, 2)) == [Index.SCHEDULED]
    assert heard() == [(ECHO.key, 1)]


def test_heads_holds_nothing(store: Reservations):
    store.admit(Q, [ready(1), ready(2, lane=CODEX, priority=1)])
    before = everything(store)
    for _ in range(2):
        assert store.head(Q, lambda _: True) == (-1, ready(2).member)
    assert everything(store) == before


# -- confirm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [Index.GRANTING, Index.RESERVED])
def test_confirm_gives_a_grant_its_deadline(store: Reservations, moment: Moment, index: Index):
    store.admit(Q, [ready(1)])
    take(store)
    assert confirm(store, 1, index=index, hold_ms=30_000) == 1
    assert where(store, 1) == {index: START + 30_000}
    assert hash_of(store, 1)["ver"] == "2"
    moment.now += 10
    assert confirm(store, 1, index=index, hold_ms=30_000) == 1
    again = START + 30_000 + (10 if index is Index.GRANTING else 0)
    assert where(store, 1) == {index: again}
    renewed = renew(store, 1)
    assert renewed is not None
    assert renewed.job == '{"job": 1}'


def test_confirm_of_what_another_claim_holds_changes_nothing(store: Reservations):
    store.admit(Q, [ready(1), ready(2)])
    take(store, lease="other")
    before = everything(store)
    assert confirm(store, 1, 2, 3) == 0
    assert everything(store) == before


def test_confirm_of_a_batch_confirms_what_is_still_held(store: Reservations):
    store.admit(Q, [ready(1), ready(2), ready(3)])
    take(store, limit=3)
    store.drop(Q, [("job2", 9)])
    assert confirm(store, 1, 2, 3) == 2
    assert [list(where(store, n)) for n in (1, 2, 3)] == [[Index.RESERVED], [], [Index.RESERVED]]


def test_confirm_leaves_what_was_taken_up_and_what_the_ledger_said_since(
    store: Reservations, moment: Moment
):
    store.admit(Q, [ready(1)])
    take(store)
    # reconcile was faster, the worker has sent a heartbeat, and an operator asks it to stop
    store.admit(Q, [reserved(1, START, version=2)])
    moment.now += 5
    assert renew(store, 1) is not None
    store.admit(Q, [reserved(1, START, version=3, cancel='["now"]', json="newer")])
    assert confirm(store, 1, index=Index.GRANTING, hold_ms=1000) == 1
    assert where(store, 1) == {Index.RESERVED: START + 5 + 60_000}
    assert renew(store, 1) == Renewed(START + 5 + 60_000, "newer", '["now"]')


def test_confirm_keeps_what_no_lua_number_could(store: Reservations):
    store.admit(Q, [ready(1)])
    take(store)
    text = json.dumps({"n": 2**63, "empty": [], "nul": "\0", "f": 0.1, "u": "\ud800 é"})
    store.confirm(Q, [("job1", 2, text)], lease_id="L", index=Index.RESERVED, hold_ms=1, lease_ms=1)
    renewed = renew(store, 1)
    assert renewed is not None
    assert renewed.job == text


# -- renew ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [Index.GRANTING, Index.RESERVED])
def test_renew_extends_and_takes_up(store: Reservations, moment: Moment, index: Index):
    store.admit(Q, [reserved(1, START + 1000, index=index)])
    moment.now += 10
    assert renew(store, 1) == Renewed(START + 60_010, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 60_010}
    moment.now += 10
    assert renew(store, 1, lease_ms=15_000) == Renewed(START + 15_020, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 15_020}


def test_renew_without_a_time_only_takes_up(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(1, START + 1000, index=Index.GRANTING, lease_ms=90_000)])
    moment.now += 10
    assert renew(store, 1, lease_ms=None) == Renewed(START + 90_010, '{"job": 1}', "")
    moment.now += 10
    assert renew(store, 1, lease_ms=None) == Renewed(START + 90_010, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 90_010}


@pytest.mark.parametrize(
    "who",
    [
        {"worker_id": "v"},
        {"lease_id": "M"},
        {"worker_id": "v", "lease_id": None},
        {"worker_id": "", "lease_id": None},
    ],
)
def test_renew_by_another_is_for_the_ledger_to_answer(store: Reservations, who: dict[str, Any]):
    store.admit(Q, [reserved(1, START + 1000)])
    before = everything(store)
    assert renew(store, 1, **who) is None
    assert everything(store) == before


def test_renew_without_a_lease_id_goes_by_the_worker(store: Reservations):
    store.admit(Q, [reserved(1, START + 1000)])
    assert renew(store, 1, lease_id=None) is not None


@pytest.mark.parametrize("placement", [None, ready(1), scheduled(1, START)])
def test_renew_of_what_nobody_holds_is_for_the_ledger(
    store: Reservations, placement: Placement | None
):
    if placement is not None:
        store.admit(Q, [placement])
    before = everything(store)
    assert renew(store, 1) is None
    assert renew(store, 1, worker_id="", lease_id=None) is None
    assert everything(store) == before


def test_renew_of_what_lies_in_no_index_is_for_the_ledger(store: Reservations):
    store.admit(Q, [reserved(1, START + 1000)])
    store.client.delete(f"{{db:{Q}}}:g1:reserved")
    assert renew(store, 1) is None
    assert where(store, 1) == {}


# -- due --------------------------------------------------------------------------------------


def test_due_names_what_is_past_its_deadline_and_nothing_else(store: Reservations):
    store.admit(
        Q,
        [
            reserved(1, START, lease="L1"),
            reserved(2, START + 1, lease="L2"),
            reserved(3, START - 1, lease="L3", index=Index.GRANTING),
            ready(4),
            scheduled(5, START - 1),
        ],
    )
    now_ms, due = store.due(Q, limit=9)
    assert now_ms == START
    assert due == [
        Due("job3", "L3", Index.GRANTING),
        Due("job1", "L1", Index.RESERVED),
    ]


def test_due_flags_so_that_a_heartbeat_asks_the_ledger(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(1, START)])
    assert len(store.due(Q, limit=9)[1]) == 1
    assert renew(store, 1) is None
    assert renew(store, 1, lease_ms=None) is None
    assert store.due(Q, limit=9)[1] == [], "another sweep is at it"
    moment.now += EXPIRING_AGAIN_MS
    assert len(store.due(Q, limit=9)[1]) == 1, "Again: names what is overdue by then"


def test_due_is_bounded_and_oldest_first(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(number, START - number) for number in range(5)])
    assert [one.id for one in store.due(Q, limit=2)[1]] == ["job4", "job3"]
    assert [one.id for one in store.due(Q, limit=9)[1]] == ["job2", "job1", "job0"]


def test_due_names_and_removes_what_has_no_hash(store: Reservations):
    store.admit(Q, [reserved(1, START), reserved(2, START, index=Index.GRANTING)])
    for number in (1, 2):
        store.client.delete(f"{{db:{Q}}}:g1:job:job{number}")
    assert {(one.id, one.lease_id) for one in store.due(Q, limit=9)[1]} == {
        ("job1", ""), ("job2", ""),
    }  # fmt: skip
    assert where(store, 1) == where(store, 2) == {}


# -- promote ----------------------------------------------------------------------------------


def test_promote_makes_due_jobs_ready_and_wakes(store: Reservations, moment: Moment, heard: Any):
    store.admit(Q, [scheduled(n, START + n) for n in range(1, 5)])
    store.admit(Q, [scheduled(9, START + 1, lane=CODEX)])
    assert store.promote(Q, limit=9) == 0
    moment.now += 3
    assert store.promote(Q, limit=3) == 3
    assert store.promote(Q, limit=9) == 1
    assert store.promote(Q, limit=9) == 0
    told = heard()
    assert sum(n for lane, n in told if lane == ECHO.key) == 3
    assert sum(n for lane, n in told if lane == CODEX.key) == 1
    assert take(store, limit=9) == ("job1", "job2", "job3", "job9")


def test_promote_removes_what_has_no_hash(store: Reservations):
    store.admit(Q, [scheduled(1, START)])
    store.client.delete(f"{{db:{Q}}}:g1:job:job1")
    assert store.promote(Q, limit=9) == 1
    assert where(store, 1) == {}
