"""What a real server alone can show: cost, full memory, a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import redis

from broker.errors import ReservationsUnavailable
from broker.policy import Lane
from broker.reservations.shapes import Placement, Sheaf
from broker.reservations.store import Reservations
from tests.contract.scripts.kit import (
    ECHO,
    START,
    Moment,
    Q,
    build,
    confirm,
    everything,
    ready,
    renew,
    reserved,
    scheduled,
    take,
)
from tests.services import Valkey

# -- what a real server alone can show --------------------------------------------------------


def calls_of(client: redis.Redis, call: Callable[[], Any]) -> int:
    """Count the commands that a call runs on the server, those of its scripts too."""
    client.config_resetstat()
    call()
    stats = client.info("commandstats")
    ours = {"cmdstat_info", "cmdstat_config|resetstat"}
    return sum(stat["calls"] for name, stat in stats.items() if name not in ours)


@pytest.fixture
def real(valkey_url: str, moment: Moment) -> Iterator[Reservations]:
    """Give reservations on a real server only."""
    made = Reservations(Reservations.connect(valkey_url).client, now_ms=moment)
    build(made)
    yield made
    made.close()


def test_a_claim_costs_the_same_whatever_is_queued(real: Reservations):
    real.admit(Q, [ready(n) for n in range(10)])
    take(real)
    few = calls_of(real.client, lambda: take(real))
    real.admit(Q, [ready(n) for n in range(10, 20_000)])
    many = calls_of(real.client, lambda: take(real))
    assert many == few


def test_a_claim_costs_the_same_whatever_the_number_of_lanes(real: Reservations):
    def lanes(first: int, last: int) -> list[Placement]:
        return [ready(n, lane=Lane(Q, f"t{n}", None, ())) for n in range(first, last)]

    def last_ones() -> None:
        real.reserve(Q, lambda lane: lane.type in {"t498", "t499"}, lease_id="L", worker_id="w")

    def later_half() -> None:
        real.reserve(Q, lambda lane: int(lane.type[1:]) >= 250, lease_id="L", worker_id="w")

    real.admit(Q, lanes(0, 2))
    take(real)
    two = calls_of(real.client, lambda: take(real))
    real.admit(Q, lanes(2, 500))
    real.head(Q, lambda _: True)
    for claim in (lambda: take(real), last_ones, later_half):
        claim()  # learns the lanes
        assert calls_of(real.client, claim) <= two + 5


GROWING: Final[dict[str, Callable[[Reservations], Any]]] = {
    "admit": lambda store: store.admit(Q, [ready(50)]),
    "reserve": take,
    "heads": lambda store: store.head(Q, lambda _: True),
    "promote": lambda store: store.promote(Q, limit=9),
    "mend": lambda store: store.mend(Q, at=0, limit=9),
    "fill": lambda store: store.fill(
        Q, 2, "t", [Sheaf(ECHO.key, 0, 1, "", [ready(1).member])], specs=[ECHO.spec()]
    ),
}
SHRINKING: Final[dict[str, Callable[[Reservations], Any]]] = {
    "renew": lambda store: renew(store, 2),
    "confirm": lambda store: confirm(store, 1),
    "due": lambda store: store.due(Q, limit=9)[1],
    "drop": lambda store: store.drop(Q, [("job3", 9)]),
}


def test_full_memory_refuses_what_grows_as_a_whole_and_lets_the_rest_run(
    start_valkey: Callable[..., Valkey], moment: Moment
):
    with start_valkey().client() as client:
        store = Reservations(client, now_ms=moment)
        build(store)
        store.admit(Q, [ready(1), ready(9)])
        take(store)
        store.admit(Q, [reserved(2, START + 9), reserved(3, START), scheduled(4, START)])
        assert store.start_building(Q, "t")
        client.config_set("maxmemory", "1")
        before = everything(store)
        for name, call in GROWING.items():
            with pytest.raises(ReservationsUnavailable, match="maxmemory"):
                call(store)
            assert everything(store) == before, name
        for plain in (
            lambda: store.mark_seen("w", 1),
            lambda: store.revoke("id"),
            lambda: store.set_mark(Q, 1),
            lambda: store.start_building(Q, "u"),
        ):
            with pytest.raises(ReservationsUnavailable):
                plain()
        for name, call in SHRINKING.items():
            assert call(store), name
        store.publish(Q, 2, "t", {})
        assert store.generation(Q) == 2
        client.config_set("maxmemory", "0")
        store.admit(Q, [ready(1)])
        assert take(store) == ("job1",)


def test_a_replica_refuses_and_says_so(start_valkey: Callable[..., Valkey], moment: Moment):
    primary = start_valkey()
    with start_valkey().client() as client:
        store = Reservations(client, now_ms=moment)
        build(store)
        store.admit(Q, [ready(1)])
        client.replicaof("127.0.0.1", str(primary.port))
        for call in (
            lambda: take(store),
            lambda: store.mark_seen("w", 1),
            lambda: store.start_building(Q, "t"),
        ):
            with pytest.raises(ReservationsUnavailable):
                call()
