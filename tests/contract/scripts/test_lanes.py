"""The order over lanes: the index of their heads gives the one that a look at all of them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from broker.policy import Lane
from broker.reservations.keys import QueueKeys
from broker.reservations.shapes import Sheaf
from broker.reservations.store import Reservations
from broker.states import Index
from tests.contract.scripts.kit import (
    ECHO,
    START,
    STATES,
    Moment,
    Q,
    build,
    everything,
    keys_of,
    opened,
    ready,
    renew,
    reserved,
    scheduled,
    take,
)

LANES: Final = [Lane(Q, f"t{n}", None, ()) for n in range(24)]
NUMBERS = st.integers(1, 40)
OF = st.sampled_from(LANES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ready"), NUMBERS, OF, st.integers(-2, 2)),
        st.tuples(st.just("scheduled"), NUMBERS, OF, st.integers(-2, 9)),
        st.tuples(st.just("take"), st.sets(OF), st.integers(1, 5)),
        st.tuples(st.just("take"), st.sets(OF, max_size=3), st.integers(1, 5)),
        st.tuples(st.just("drop"), NUMBERS),
        st.tuples(st.just("later"), st.integers(1, 4)),
    ),
    min_size=10,
    max_size=40,
)


def prefix_of(store: Reservations) -> str:
    return QueueKeys(Q, store.generation(Q) or 0).prefix


def lanes_of(store: Reservations) -> list[tuple[str, list[tuple[float, str]]]]:
    """Read all lanes, each with its (rank, member)s in order."""
    prefix = prefix_of(store)
    found = []
    for key in keys_of(store.client, f"{prefix}lane:*"):
        rows: Any = store.client.zrange(key, 0, -1, withscores=True)
        found.append((key.removeprefix(f"{prefix}lane:"), [(rank, name) for name, rank in rows]))
    return found


def heads_of(store: Reservations) -> dict[str, float]:
    rows: Any = store.client.zrange(f"{prefix_of(store)}heads", 0, -1, withscores=True)
    return dict(rows)


def right_heads(store: Reservations) -> dict[str, float]:
    return {f"{jobs[0][1]} {lane}": jobs[0][0] for lane, jobs in lanes_of(store)}


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_the_order_is_that_of_a_look_at_every_lane(valkey_url: str, steps: list[Any]):
    moment = Moment()
    client = Reservations.connect(valkey_url).client
    client.flushall()
    store = opened(client, moment)
    build(store)
    for version, (what, *how) in enumerate(steps):
        if what == "ready":
            number, lane, priority = how
            store.admit(Q, [ready(number, version=version, lane=lane, priority=priority)])
        elif what == "scheduled":
            number, lane, after = how
            store.admit(Q, [scheduled(number, moment.now + after, version=version, lane=lane)])
        elif what == "drop":
            store.drop(Q, [(f"job{how[0]}", version)])
        elif what == "later":
            moment.now += how[0]
        else:
            allowed, limit = how
            store.promote(Q, limit=99)
            keys = {lane.key for lane in allowed}
            every = sorted(job for lane, jobs in lanes_of(store) if lane in keys for job in jobs)
            want = [member.partition(":")[2] for _, member in every[:limit]]
            head = store.head(Q, allowed.__contains__)
            assert head == (every[0] if every else None)
            held = store.reserve(Q, allowed.__contains__, lease_id="L", worker_id="w", limit=limit)
            assert list(held.ids) == want
        assert heads_of(store) == right_heads(store)
    client.close()


def lost(store: Reservations, heads: str) -> None:
    store.client.delete(heads)


def stale(store: Reservations, heads: str) -> None:
    """Lose the lanes of some heads."""
    for lane in LANES[:10]:
        store.client.delete(f"{prefix_of(store)}lane:{lane.key}")


def wrong(store: Reservations, heads: str) -> None:
    for at, (entry, _) in enumerate(list(heads_of(store).items())[:10]):
        store.client.zadd(heads, {entry: 5 + at})
    store.client.zadd(heads, {f"{0:016d}:ghost {ECHO.key}": -9})


@pytest.mark.parametrize("damage", [lost, stale, wrong])
def test_heads_that_are_wrong_are_mended_page_by_page(
    store: Reservations, damage: Callable[[Reservations, str], None]
):
    store.admit(Q, [ready(2 * n + k, lane=lane) for n, lane in enumerate(LANES) for k in (0, 1)])
    damage(store, f"{prefix_of(store)}heads")
    assert heads_of(store) != right_heads(store)
    at, mended = 0, 0
    for _ in range(4):
        some, at = store.mend(Q, at=at, limit=7)
        mended += some
    assert at == 0
    some, _ = store.mend(Q, at=0, limit=99)
    assert mended + some > 0
    assert heads_of(store) == right_heads(store)
    assert store.mend(Q, at=0, limit=99) == (0, 0)


def test_a_head_that_is_none_any_more_hides_no_job(store: Reservations):
    store.admit(Q, [ready(n, lane=lane) for n, lane in enumerate(LANES)])
    stale(store, "")
    assert store.head(Q, lambda _: True) == (0, ready(10).member)
    assert take(store, limit=3) == ("job10", "job11", "job12")
    assert heads_of(store) == right_heads(store)


def lies(store: Reservations, generation: int) -> dict[str, Any]:
    """Read all that a generation has; what lies folded as if it had a hash of its own."""
    prefix = f"{{db:{Q}}}:g{generation}:"
    found = {
        key.removeprefix(prefix): value
        for key, value in everything(store).items()
        if key.startswith(prefix) and not key.endswith((":mark", ":lanes_ver"))
    }
    for job_id, text in found.pop("folded", {}).items():
        ver, rank, lane, seq = text.split()
        member = f"{seq}:{job_id}"
        folded = {"ver": ver, "lane": lane, "member": member, "rank": rank}
        assert found.setdefault(f"job:{job_id}", folded) == folded, "it lies once"
    return found


def test_what_is_filled_in_lies_as_if_admitted(store: Reservations, moment: Moment):
    store.admit(Q, [ready(1, priority=3), ready(2), scheduled(3, START + 5, lane=LANES[0])])
    assert store.start_building(Q, "t")
    waiting = [
        Sheaf(ECHO.key, -3, 1, "", [ready(1).member]), Sheaf(ECHO.key, 0, 1, "", [ready(2).member]),
        Sheaf(LANES[0].key, 0, 1, START + 5, [ready(3).member]),
    ]  # fmt: skip
    for _ in range(2):  # again the same
        store.fill(Q, 2, "t", waiting, specs=[ECHO.spec(), LANES[0].spec()])
    assert lies(store, 1) == lies(store, 2)
    store.publish(Q, 2, "t", {})
    assert take(store, limit=9) == ("job1", "job2")
    moment.now += 5
    assert take(store, limit=9) == ("job3",)


#: what may be done to a job that waits, in its fourth version
ACTS: Final[dict[str, Callable[[Reservations], Any]]] = {
    "as it is": lambda store: store.admit(Q, [ready(1, version=4)]),
    "as it is, by force": lambda store: store.admit(Q, [ready(1, version=4)], force=True),
    "as it was": lambda store: store.admit(Q, [reserved(1, START, version=3)], force=True),
    **{
        f"as it became, {number}": lambda store, new=new: store.admit(Q, [replace(new, version=5)])
        for number, new in enumerate(STATES)
    },
    "ended": lambda store: store.drop(Q, [("job1", 4)]),
    "ended before": lambda store: store.drop(Q, [("job1", 3)]),
    "held": take,
    "given": lambda store: [take(store), store.confirm(Q, [("job1", 5, "{}")], **GIVEN)],
    "given back": lambda store: [
        take(store), store.admit(Q, [ready(1, version=4)], force=True), take(store, "again"),
    ],
    "run": lambda store: [
        take(store), store.confirm(Q, [("job1", 5, "{}")], **GIVEN), renew(store, 1),
        store.drop(Q, [("job1", 6)]),
    ],
}  # fmt: skip
GIVEN: Final[Any] = {
    "lease_id": "L", "index": Index.GRANTING, "hold_ms": 9, "lease_ms": 60_000,
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_what_is_filled_in_goes_on_as_if_admitted(store: Reservations, act: str):
    store.admit(Q, [ready(1, version=4), ready(2)])
    admitted = [ACTS[act](store), lies(store, 1)]
    assert store.start_building(Q, "t")
    sheaves = [Sheaf(ECHO.key, 0, ver, "", [ready(n).member]) for n, ver in ((1, 4), (2, 1))]
    store.fill(Q, 2, "t", sheaves, specs=[ECHO.spec()])
    store.publish(Q, 2, "t", {})
    assert [ACTS[act](store), lies(store, 2)] == admitted


@pytest.mark.parametrize("text", ["not ours", "1 2 3 4 5", ""])
def test_what_lies_folded_and_cannot_be_read_is_as_if_lost(store: Reservations, text: str):
    store.admit(Q, [ready(n) for n in (1, 2, 3)])
    for number in (1, 2, 3, 4):
        store.client.delete(f"{prefix_of(store)}job:job{number}")
        store.client.hset(f"{prefix_of(store)}folded", f"job{number}", text)
    assert take(store) == ("job1",)
    assert store.admit(Q, [ready(2), ready(4)]) == 2
    assert store.drop(Q, [("job3", 1)]) == 0
    assert not store.client.exists(f"{prefix_of(store)}folded")
    assert take(store, limit=2) == ("job2", "job3")


def test_a_lane_that_a_damaged_table_hides_is_given_to_nobody_unjudged(
    store: Reservations, moment: Moment
):
    other = opened(store.client, moment)
    store.admit(Q, [ready(n, lane=lane) for n, lane in enumerate(LANES[:3])])
    not_secret = lambda lane: lane.type != "t3"  # noqa: E731
    assert other.head(Q, not_secret) is not None
    # the count of lanes is lost and starts anew: the fourth lane comes as the third
    store.client.set(f"{prefix_of(store)}lanes_ver", 2)
    store.admit(Q, [ready(3, lane=LANES[3], priority=9)])
    for _ in range(2):
        held = other.reserve(Q, not_secret, lease_id="L", worker_id="w")
        assert "job3" not in held.ids
    assert held.ids == ("job0",)
