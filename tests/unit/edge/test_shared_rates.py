"""How often one may call: by a clock nobody sets, with other edges, and without Redis."""

import time
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address

import pytest

from broker.errors import ReservationsUnavailable
from edge_api.errors import RateLimited
from edge_api.rates import WINDOW_S, Rates
from edge_api.shared_rates import AWAY_S, BLOCKS, SharedRates

LIMIT = 100 * WINDOW_S


class Redis:
    """A count that all see, and that may be away."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.calls = 0
        self.away = False
        self.now = 1_000_000.0

    def tally(self, name: str, amount: int, *, keep_s: int) -> int:
        assert keep_s >= WINDOW_S
        self.calls += 1
        if self.away:
            raise ReservationsUnavailable
        self.counts[name] += amount
        return self.counts[name]

    def edge(self) -> Rates:
        shared = SharedRates(self.tally, timer=lambda: self.now)
        return Rates(calls_per_s=100, failures_per_min=60, shared=shared, timer=lambda: self.now)


def claims(edge: Rates, count: int, worker: str = "w1") -> int:
    """Return how many of so many claims were let through."""
    good = 0
    for _ in range(count):
        with suppress(RateLimited):
            edge.called(worker, "leases.claim")
            good += 1
    return good


@pytest.fixture
def store() -> Redis:
    """Give a Redis in a moment that does not pass."""
    return Redis()


def test_edges_allow_together_what_one_would(store: Redis) -> None:
    edges = [store.edge() for _ in range(4)]
    good = sum(claims(edge, 10) for _ in range(LIMIT // 10) for edge in edges)
    assert LIMIT <= good <= LIMIT + len(edges) * (LIMIT // BLOCKS)
    # and nobody else pays for it
    assert claims(edges[0], 10, "w2") == 10


def test_what_it_costs(store: Redis) -> None:
    edge = store.edge()
    assert claims(edge, 5 * LIMIT) == LIMIT
    assert store.calls == BLOCKS


def test_without_redis_each_counts_for_itself(store: Redis) -> None:
    store.away = True
    edges = [store.edge() for _ in range(2)]
    assert [claims(edge, LIMIT) for edge in edges] == [LIMIT, LIMIT]
    assert store.calls == len(edges)  # each asked once, and then left it alone


def test_what_was_counted_meanwhile_is_told_afterwards(store: Redis) -> None:
    edge = store.edge()
    store.away = True
    claims(edge, LIMIT // 2)
    store.away = False
    store.now += AWAY_S
    claims(edge, LIMIT // BLOCKS)
    assert sum(store.counts.values()) > LIMIT // BLOCKS


def test_guesses_at_several_edges_are_one_flood(store: Redis) -> None:
    edges = [store.edge() for _ in range(3)]
    counted = 0
    for at in range(300):
        with suppress(RateLimited):
            edges[at % 3].failed(ip_address("203.0.113.9"))
            counted += 1
    assert 60 <= counted <= 60 + 3 * 60 // BLOCKS
    with pytest.raises(RateLimited) as refused:
        edges[0].failed(ip_address("203.0.113.9"))
    assert 1 <= refused.value.retry_after_s <= 60


def test_a_clock_that_is_set_back_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, passed = 1_000_000.0, 0.0
    monkeypatch.setattr(time, "time", lambda: wall)
    edge = Rates(calls_per_s=100, failures_per_min=60, timer=lambda: passed)
    assert claims(edge, LIMIT + 1) == LIMIT
    wall -= 3600
    with pytest.raises(RateLimited) as refused:
        edge.called("w1", "leases.claim")
    assert refused.value.retry_after_s == WINDOW_S
    passed += WINDOW_S
    assert claims(edge, LIMIT) == LIMIT
