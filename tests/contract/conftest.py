"""A queue service on real stores: SQLite or PostgreSQL below, a real Valkey beside."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from broker.clock import to_ms
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.upkeep import Upkeep
from tests.clusters import Cluster


class SetClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.moment = datetime.now(UTC)

    def now(self) -> datetime:
        """Return the moment it is set to."""
        return self.moment

    def advance(self, seconds: float) -> None:
        """Move it on."""
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Give a ledger without jobs on each of the databases."""
    made = Ledger(ledger_url, synchronous="NORMAL")
    yield made
    made.close()


@pytest.fixture
def clock() -> SetClock:
    """Give a clock that the test moves, for Python and for the scripts in Redis."""
    return SetClock()


@pytest.fixture
def reservations(request: pytest.FixtureRequest, clock: SetClock) -> Iterator[Reservations]:
    """Give empty reservations: a single server beside SQLite, a cluster beside PostgreSQL.

    Neither store knows the other, so all four pairs would show no more.
    """
    if request.getfixturevalue("ledger_url").startswith("sqlite"):
        client = Reservations.connect(request.getfixturevalue("valkey_url")).client
    else:
        cluster: Cluster = request.getfixturevalue("valkey_cluster")
        client = cluster.new_client()
        client.flushall()
    made = Reservations(client, now_ms=lambda: to_ms(clock.now()))
    yield made
    made.close()


@pytest.fixture
def queue(ledger: Ledger, reservations: Reservations, clock: SetClock) -> JobQueue:
    """Give the queue service of one process."""
    return JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())


@pytest.fixture
def upkeep(queue: JobQueue) -> Upkeep:
    """Give the sweeps over it."""
    return Upkeep(queue)
