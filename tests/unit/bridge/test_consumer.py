"""Ingest by a consumer: acknowledged after the ledger, held while it is away, never rejected."""

from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu.transport.memory import Transport

from broker.bridge.consumer import MessagesStep
from broker.bridge.decode import Decoder
from broker.bridge.feed import AGAIN_S
from broker.bridge.fetch import COUNT_S
from broker.errors import LedgerUnavailable
from broker.records import Ingested, NewJob, Rejection


class Bridge:
    """Stands for the bridge, with a ledger that can be away."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.away = False
        self.ingested: list[NewJob | Rejection] = []
        self.by_drain = False
        self.settings = SimpleNamespace(
            bridge=SimpleNamespace(queues=("remote",), declare_queues=True)
        )
        self.queue = self
        self.room = 1_000
        self.revokes = SimpleNamespace(apply=lambda _ingested: None)
        self.purges = SimpleNamespace(still={})

    def decoder(self, queue: str) -> Decoder:
        return Decoder(queue=queue, builtins=frozenset({"celery.accumulate"}))

    def read_ahead(self, _queue: str) -> Any:
        return SimpleNamespace(room=lambda: self.room, add=lambda _count: None)

    def ingest(self, items: list[NewJob | Rejection]) -> list[Ingested]:
        if self.away:
            raise LedgerUnavailable
        self.ingested += items
        return [Ingested(item.task_id, "new", None) for item in items]


class Worker:
    """Stands for Celery's consumer, as far as a step looks at it."""

    def __init__(self) -> None:
        Transport.Channel.queues = {}  # the broker in memory is one for the whole process
        self.app: Any = Celery("t", broker="memory://", set_as_current=False)
        self.app.drawbridge = Bridge(self.app)
        self.connection = self.app.connection()
        self.connection_errors = (OSError,)
        self.soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.later: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.timer = SimpleNamespace(
            call_after=lambda s, fun, args=(): self.later.append((s, fun, args))
        )
        self.stock: list[Any] = []

    def call_soon(self, fun: Callable[..., None], *args: Any) -> None:
        self.soon.append((fun, args))

    def create_task_handler(self) -> Any:
        return self.stock.append

    def turn(self) -> None:
        """Read the connection once, then do what was put off."""
        try:
            while True:
                self.connection.drain_events(timeout=0.01)
        except TimeoutError:
            pass
        while self.soon:
            fun, args = self.soon.popleft()
            fun(*args)

    def wake(self) -> None:
        """Let the timer go off."""
        later, self.later = self.later, []
        for _, fun, args in later:
            fun(*args)

    def send(self, *names: str, **options: Any) -> None:
        for name in names:
            self.app.send_task(name, kwargs={"n": 1}, queue="remote", **options)

    def unacked(self) -> int:
        qos = self.step.feeds[0].consumer.channel.qos
        return len(qos._delivered) - len(qos._dirty)

    @property
    def bridge(self) -> Any:
        return self.app.drawbridge

    def start(self) -> "Worker":
        self.step = MessagesStep(self)
        assert self.step.include_if(self)
        self.step.start(self)
        return self


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker().start()
    yield made
    made.step.stop(made)
    made.connection.release()
    made.app.close()


def test_messages_are_ingested_together_and_then_acknowledged(worker: Worker):
    worker.send("a", "b")
    worker.turn()
    assert [item.type for item in worker.bridge.ingested] == ["a", "b"]
    assert worker.unacked() == 0


def test_an_away_ledger_holds_what_came_and_asks_for_no_more(worker: Worker):
    worker.bridge.away = True
    worker.send("a")
    worker.turn()
    assert (worker.bridge.ingested, worker.unacked()) == ([], 1)
    assert [s for s, *_ in worker.later] == [AGAIN_S]
    worker.send("b")
    worker.turn()
    worker.wake()
    worker.turn()
    assert (worker.bridge.ingested, worker.unacked()) == ([], 1)
    worker.bridge.away = False
    worker.wake()
    worker.turn()
    worker.turn()
    assert [item.type for item in worker.bridge.ingested] == ["a", "b"]
    assert worker.unacked() == 0
    assert worker.later == []


def test_a_full_ledger_asks_for_no_more_until_there_is_room(worker: Worker):
    worker.bridge.room = 0
    worker.send("a")
    worker.turn()
    assert worker.unacked() == 0
    worker.send("b")
    worker.turn()
    assert [item.type for item in worker.bridge.ingested] == ["a"]
    assert [s for s, *_ in worker.later] == [COUNT_S]
    worker.bridge.room = 1
    worker.wake()
    worker.turn()
    worker.turn()
    assert [item.type for item in worker.bridge.ingested] == ["a", "b"]


def test_celerys_own_tasks_go_to_the_stock_handler(worker: Worker):
    worker.send("celery.accumulate", "a")
    worker.turn()
    assert [message.headers["task"] for message in worker.stock] == ["celery.accumulate"]
    assert [item.type for item in worker.bridge.ingested] == ["a"]


def test_a_compressed_body_is_inflated_by_us(worker: Worker):
    worker.send("a", compression="zlib")
    worker.turn()
    (job,) = worker.bridge.ingested
    assert job.payload == {"n": 1}


def test_poison_is_a_rejection_and_acknowledged(worker: Worker):
    with worker.app.producer_or_acquire() as producer:
        producer.publish(b"\xff", routing_key="remote", content_type="application/x-pickle",
                         content_encoding="binary", headers={"compression": "zlib"})  # fmt: skip
    worker.send("a")
    worker.turn()
    first, second = worker.bridge.ingested
    assert isinstance(first, Rejection)
    assert isinstance(second, NewJob)
    assert worker.unacked() == 0


def test_higher_numbers_are_served_first_where_the_broker_means_it_so(worker: Worker):
    worker.send("a", priority=7)
    worker.turn()
    assert worker.bridge.ingested[0].priority == 7


def test_for_a_purge_all_that_came_is_ingested_and_no_more_comes(worker: Worker):
    worker.send("a")
    worker.connection.drain_events(timeout=1)
    with worker.bridge.purges.still["remote"]():
        worker.send("b")
        with pytest.raises(TimeoutError):
            worker.connection.drain_events(timeout=0.01)
    assert [one.type for one in worker.bridge.ingested] == ["a"]
    worker.turn()
    assert [one.type for one in worker.bridge.ingested] == ["a", "b"]


def test_a_lost_connection_closes_every_feed(worker: Worker):
    connection, worker.connection = worker.connection, None
    feeds = worker.step.feeds
    worker.step.stop(worker)
    assert feeds
    assert all(feed._closed for feed in feeds)
    worker.connection = connection


def test_a_stopped_step_forgets_what_it_held(worker: Worker):
    worker.bridge.away = True
    worker.send("a")
    worker.turn()
    worker.step.stop(worker)
    worker.bridge.away = False
    worker.wake()
    worker.turn()
    assert worker.bridge.ingested == []  # the broker will deliver it again
    worker.step.start(worker)
    worker.send("b")
    worker.turn()
    assert [item.type for item in worker.bridge.ingested] == ["b"]
