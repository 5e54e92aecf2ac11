"""News of one job in any order, which one sweep and one look must put right."""

from __future__ import annotations

from uuid import uuid4

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from broker.policy import Lane
from broker.reservations.shapes import Placement
from broker.reservations.store import Reservations
from broker.states import Index
from tests.contract.scripts.kit import (
    Moment,
    Q,
    build,
    confirm,
    hash_of,
    ready,
    renew,
    reserved,
    scheduled,
    take,
    where,
)

# -- any order of news ------------------------------------------------------------------------

PLACES = st.sampled_from(["ready", "scheduled", "reserved", "ended"])
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("reserve"), st.integers(0, 2), st.just(False)),
    st.tuples(st.just("confirm"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("renew"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("sweep"), st.integers(1, 70_000), st.just(False)),
    st.tuples(st.just("promote"), st.just(0), st.just(False)),
)


def truth(kind: str, version: int, now: int) -> Placement | None:
    """Say where the ledger sees the job at a version; None when it has ended."""
    if kind == "ended":
        return None
    if kind == "reserved":
        return reserved(1, now + 60_000, lease=f"L{version}", version=version)
    if kind == "scheduled":
        return scheduled(1, now + 30_000, version=version)
    return ready(1, version=version)


class News:
    """What a ledger says of one job, version by version, reaching the index in any order."""

    def __init__(self, store: Reservations, moment: Moment, kinds: list[str]) -> None:
        self.store = store
        self.moment = moment
        self.kinds = kinds
        #: what the ledger has committed so far
        self.version = 1

    def put(self, version: int, *, force: bool = False) -> None:
        """Tell the index what the ledger said at a version, as ``Indexer`` does."""
        placement = truth(self.kinds[version - 1], version, self.moment.now)
        if placement is None:
            self.store.drop(Q, [("job1", version)])
        else:
            self.store.admit(Q, [placement], force=force)

    def sweep(self) -> None:
        """Ask about what is overdue, and put it where the ledger has it."""
        for one in self.store.due(Q, limit=9)[1]:
            assert one.id == "job1"
            self.put(self.version, force=True)

    def step(self, what: str, number: int, *, flag: bool) -> None:
        """Do one thing, late or twice or by a claim that dies after it."""
        known = min(number + 1, len(self.kinds))
        lease = f"L{known}"
        if what == "put":
            # an older one is late; a newer one is what the ledger has just committed
            self.version = max(self.version, known)
            self.put(known, force=flag)
        elif what == "reserve":
            take(self.store, lease=f"claim{number}", worker=f"w{number}")
        elif what == "confirm":
            index = Index.GRANTING if flag else Index.RESERVED
            confirm(self.store, 1, lease=lease, index=index, hold_ms=30_000)
        elif what == "renew":
            renew(self.store, 1, lease_id=lease, lease_ms=None if flag else 60_000)
        elif what == "promote":
            self.store.promote(Q, limit=9)
        else:
            self.moment.now += number
            self.sweep()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(kinds=st.lists(PLACES, min_size=1, max_size=6), steps=st.lists(STEPS, max_size=25))
def test_whatever_came_before_one_sweep_and_one_look_put_it_right(
    store: Reservations, moment: Moment, kinds: list[str], steps: list[tuple[str, int, bool]]
):
    """News of one job arrive late, twice and in any order, between claims that die midway."""
    store.client.flushall()
    build(store, 1)
    store._known.clear()
    news = News(store, moment, kinds)
    news.put(1)
    for what, number, flag in steps:
        news.step(what, number, flag=flag)
        assert len(where(store, 1)) <= 1, "never in two indexes"
    event(f"before: {list(where(store, 1))}")
    # what reconcile sees, then what a sweep ends, then what reconcile sees of that
    news.put(news.version)
    moment.now += 61_000
    news.sweep()
    news.put(news.version)
    kind = kinds[news.version - 1]
    if kind == "scheduled":
        store.promote(Q, limit=9)
        moment.now += 31_000
        store.promote(Q, limit=9)
    expected = {"ended": [], "reserved": [Index.RESERVED]}.get(kind, [Index.READY])
    assert list(where(store, 1)) == expected
    if kind == "reserved":
        assert hash_of(store, 1)["lease"] == f"L{news.version}"


def test_a_thousand_names_of_lanes_do_not_meet():
    keys = {Lane(Q, str(uuid4()), None, ()).key for _ in range(1000)}
    assert len(keys) == 1000
