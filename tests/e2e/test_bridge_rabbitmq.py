"""RabbitMQ as the Celery broker: nothing lost, nothing doubled, whoever is killed."""

import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import amqp
import psutil
import pytest
import sqlalchemy as sa
from celery import Celery, chain
from celery.exceptions import InvalidTaskError
from kombu import Exchange, pools
from kombu import Queue as KombuQueue

from broker.ledger.fleet import backlog
from broker.ledger.jobs import jobs
from tests.e2e.bridges import QUEUE, World
from tests.processes import Process
from tests.rabbitmq import RabbitMQ
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60
DURABLE = {"durable": True, "auto_delete": False}
QUORUM = {"x-queue-type": "quorum"}


class RabbitWorld(World):
    """A world whose Celery broker is RabbitMQ; results lie in a Redis unless told otherwise."""

    def __init__(self, rabbit: RabbitMQ, backend: str, *others: Any) -> None:
        super().__init__(*others)
        self.rabbit = rabbit
        self.broker_url = rabbit.url
        self.backend_url = backend
        self.app.close()
        self.app = self.orchestrator()

    def orchestrator(self, **conf: Any) -> Celery:
        """Return another orchestrator's app, which confirms what it sends."""
        app = Celery("orchestrator", broker=self.broker_url, backend=self.backend_url)
        bridged = KombuQueue(QUEUE, Exchange(QUEUE), routing_key=QUEUE, no_declare=True)
        app.conf.update(
            task_default_queue="local",
            task_queues=[bridged],
            broker_transport_options={"confirm_publish": True},
        )
        retry = {"max_retries": 1, "interval_start": 0}
        app.conf.update(result_backend_transport_options={"retry_policy": retry}, **conf)
        return app

    def task_ids(self) -> list[str]:
        """Return the task ids of the ledger, as they came."""
        with self.ledger.read() as conn:
            return list(conn.scalars(sa.select(jobs.c.task_id).order_by(jobs.c.seq)))

    def row(self, task_id: str) -> Any:
        """Return what became of a task."""
        with self.ledger.read() as conn:
            return conn.execute(
                sa.select(jobs.c.status, jobs.c.reason, jobs.c.queue).where(
                    jobs.c.task_id == task_id
                )
            ).one_or_none()

    def declare(self, *names: str, **arguments: Any) -> None:
        """Declare queues as an orchestrator would: durable, each bound to its own exchange."""
        with self.rabbit.client() as connection:
            channel = connection.channel()
            for name in names:
                channel.exchange_declare(name, "direct", **DURABLE)
                channel.queue_declare(name, arguments=arguments, **DURABLE)
                channel.queue_bind(name, name, name)

    def publish(self, count: int, *, queue: str = QUEUE) -> set[str]:
        """Publish many tasks, each confirmed: one is made by Celery, the others are its copies."""
        with self.rabbit.client() as connection:
            channel = connection.channel()
            self.declare("template")
            sent = self.app.send_task("codex_exec", kwargs={"n": 0}, queue="template")
            message = until(lambda: channel.basic_get("template", no_ack=True), GET_S, "a message")
            ids = {f"{sent.id[:-8]}{n:08x}" for n in range(count)}
            for task_id in sorted(ids):
                message.properties["application_headers"]["id"] = task_id
                channel.basic_publish(message, routing_key=queue)
        return ids

    def close(self) -> None:
        """Close what this process opened; kombu keeps connections for the whole process."""
        if self.backend_url == "rpc://":
            self.app.backend.result_consumer.stop()
        super().close()
        pools.reset()

    def left(self, queue: str = QUEUE) -> int:
        """Count the messages that are ready in a queue."""
        with self.rabbit.client() as connection:
            return int(connection.channel().queue_declare(queue, passive=True).message_count)


class Unreadable(amqp.Message):
    """A message with a date that no datetime can hold, as a clock in milliseconds makes it."""

    def _serialize_properties(self) -> bytes:
        header = struct.pack(">B4scQ", 4, b"sent", b"T", 1_700_000_000_000)
        return struct.pack(">HI", 1 << 13, len(header)) + header


@pytest.fixture
def rabbit(shared_rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """Give the module's RabbitMQ without the queues of earlier tests."""
    yield shared_rabbitmq.start()
    with shared_rabbitmq.client() as connection:
        for name in (QUEUE, f"{QUEUE}.parked", "second", "local", "template"):
            connection.channel().queue_delete(name)
            connection.channel().exchange_delete(name)


@pytest.fixture(scope="module")
def shared_rabbitmq() -> Iterator[RabbitMQ]:
    server = RabbitMQ().start()
    yield server
    server.remove()


@pytest.fixture
def world(
    rabbit: RabbitMQ,
    start_valkey: Callable[..., Valkey],
    migrated_sqlite: Path,
    tmp_path: Path,
    process: Callable[..., Process],
) -> Iterator[RabbitWorld]:
    stores = start_valkey()
    backend = stores.url.removesuffix("/0") + "/1"
    shutil.copy(migrated_sqlite, tmp_path / "ledger.sqlite3")
    made = RabbitWorld(rabbit, backend, stores, stores, tmp_path, process)
    yield made
    made.close()


# -- nothing is lost ------------------------------------------------------------------------------


@pytest.fixture
def both(world: RabbitWorld) -> tuple[str, ...]:
    """Declare a quorum queue and a classic one; return what makes a bridge of both."""
    world.declare(QUEUE, **QUORUM)
    world.declare("second")
    return ("--queue", QUEUE, "--queue", "second")


@pytest.mark.faults
def test_kills_while_ingesting_thousands_lose_none_and_double_none(
    world: RabbitWorld, both: tuple[str, ...]
):
    sent = world.publish(1_000) | world.publish(1_000, queue="second")
    in_flight = 0
    for number, goal in enumerate((100, 900)):
        bridge = world.bridge(*both, name=f"bridge{number}")
        until(lambda: len(world.task_ids()) >= goal, 60, "some were ingested")  # noqa: B023
        bridge.kill()
        in_flight += len(world.task_ids()) < len(sent)
    assert in_flight == 2, "a kill came too late to prove anything"
    # two share the rest
    world.bridge(*both, name="one")
    world.bridge(*both, name="two")
    until(lambda: len(world.task_ids()) >= len(sent), 60, lambda: str(world.left()))
    assert Counter(world.task_ids()) == Counter(sent)
    until(lambda: world.left() + world.left("second") == 0, GET_S, "the queues are empty")


@pytest.mark.faults
def test_a_killed_rabbitmq_comes_back_with_every_confirmed_message(
    world: RabbitWorld, both: tuple[str, ...]
):
    world.bridge(*both)
    sent = world.publish(10)
    until(lambda: len(world.task_ids()) == 10, GET_S, "all were ingested")
    with world.ledger.write():  # SQLite has one writer: what comes now waits in the bridge
        sent |= world.publish(200) | world.publish(200, queue="second")
        until(lambda: world.left() < 200 and world.left("second") < 200, GET_S, "some are held")
        world.rabbit.kill()
    world.rabbit.start()
    until(lambda: len(world.task_ids()) >= len(sent), 60, "the bridge came back")
    assert Counter(world.task_ids()) == Counter(sent)
    late = world.send()
    until(lambda: world.catalog.find(late.id), GET_S, "and goes on")
    # a bridge's own consumers are no ordinary workers
    found = world.doctor()
    assert found["ordinary workers"]["status"] == "ok"
    assert found["confirms"]["status"] == "notice"


@pytest.mark.faults
def test_an_away_ledger_is_waited_for_without_costing_a_delivery(world: RabbitWorld):
    world.declare(QUEUE, **QUORUM, **{"x-delivery-limit": 0})  # a second delivery is one too many
    bridge = world.bridge()
    with world.ledger.write():
        sent = world.publish(300)
        bridge.wait_for("messages of remote held")
        assert world.left() >= 100
    until(lambda: len(world.task_ids()) >= 300, 60, "ingest resumes")
    assert Counter(world.task_ids()) == Counter(sent)


def test_what_a_delivery_limit_parked_is_read_back_to_its_queue(world: RabbitWorld):
    parked = f"{QUEUE}.parked"
    world.declare(parked)
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": parked}
    world.declare(QUEUE, **QUORUM, **dead, **{"x-delivery-limit": 1})
    sent = world.send(kwargs={"n": 1})
    with world.rabbit.client() as connection:
        channel = connection.channel()
        channel.basic_publish(amqp.Message(b"\xff", delivery_mode=2), routing_key=QUEUE)
        for _ in range(4):
            message = until(lambda: channel.basic_get(QUEUE), GET_S, "a message")
            channel.basic_reject(message.delivery_tag, requeue=True)
    until(lambda: world.left(parked) == 2, GET_S, "both are parked")
    world.bridge("--queue", QUEUE, "--queue", parked)
    job = world.claim()
    assert (job.task_id, job.queue) == (sent.id, QUEUE)
    until(lambda: len(world.task_ids()) == 2, GET_S, "the other is rejected")
    assert world.left(parked) == 0


# -- what is in the messages ----------------------------------------------------------------------


def test_poison_is_rejected_told_and_stops_nobody(world: RabbitWorld):
    world.declare(QUEUE)
    bombs = {"compression": "zlib", "id": "bomb", "task": "codex_exec"}
    bomb = zlib.compress(b"[" + b" " * (64 * 1024 * 1024), 9)
    far = {"far": datetime(9999, 1, 1, tzinfo=UTC)}
    with world.rabbit.client() as connection:
        channel = connection.channel()

        def publish(body: bytes, **properties: Any) -> None:
            channel.basic_publish(amqp.Message(body, **properties), routing_key=QUEUE)

        publish(b"\xff\xfe", content_type="application/json", content_encoding="utf-8")
        publish(b"{", content_type="application/json", content_encoding="utf-7")
        publish(b"", content_type="application/x-python-serialize")
        publish(bomb, content_type="application/json", application_headers=bombs)
        publish(b"x", application_headers={"raw": b"\xff", "id": "\udcff", **far})
        channel.basic_publish(Unreadable(b"y"), routing_key=QUEUE)
    late = world.send(headers={"eta": "soon"})
    compressed = world.send(kwargs={"n": 2}, compression="zlib")
    bridge = world.bridge()
    job = world.claim()
    assert (job.task_id, job.payload) == (compressed.id, {"n": 2})
    until(lambda: len(world.task_ids()) == 8, GET_S, lambda: str(world.task_ids()))
    assert {tuple(world.row(one)[:2]) for one in world.task_ids() if one != job.task_id} == {
        ("failed", "rejected")
    }
    for refused in (late.id, "bomb"):
        with pytest.raises(InvalidTaskError):
            world.app.AsyncResult(refused).get(timeout=GET_S)
    until(lambda: world.left() == 0, GET_S, "all are acknowledged")
    assert psutil.Process(bridge.pid).memory_info().rss < 400 * 1024 * 1024
    assert bridge.terminate() == 0


# -- canvases, results, nodes ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["redis", "rpc"])
def test_results_and_a_chain_with_an_ordinary_worker(world: RabbitWorld, backend: str):
    if backend == "rpc":
        world.backend_url = "rpc://"
        world.app.close()
        world.app = world.orchestrator()
    world.bridge("--declare-queues")
    world.local_worker()
    sent = world.send(kwargs={"n": 1}, priority=7)
    job = world.claim()
    assert (job.task_id, job.priority, job.payload) == (sent.id, 7, {"n": 1})
    world.complete(job, {"summary": "done"})
    assert sent.get(timeout=GET_S) == {"summary": "done"}
    failed = world.send()
    world.fail(world.claim(), "no such ref", error_type="ValueError")
    with pytest.raises(ValueError, match="no such ref"):
        failed.get(timeout=GET_S)
    remote = world.app.signature("codex_exec", queue=QUEUE)
    report = world.app.signature("local.report", kwargs={"title": "t"}, queue="local")
    linked = chain(remote, report, app=world.app).apply_async()
    world.complete(world.claim(), {"changedFiles": ["a.py"]})
    assert linked.get(timeout=GET_S) == {"title": "t", "changed": ["a.py"]}


def test_celerys_own_tasks_are_executed_and_nodes_answer(world: RabbitWorld):
    world.declare(QUEUE)
    world.bridge()
    world.queue.seen("worker-1")
    for compression in (None, "zlib"):
        sent = world.app.send_task(
            "celery.accumulate", (1, 2), {"index": 1}, queue=QUEUE, compression=compression
        )
        assert sent.get(timeout=GET_S) == 2
    assert world.task_ids() == []
    inspect = world.app.control.inspect(timeout=1)
    until(lambda: "worker-1@edge" in (inspect.ping() or {}), GET_S, "the node answers")
    argv = [sys.executable, "-m", "celery", "-b", world.broker_url, "status", "-t", "3"]
    status = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "worker-1@edge" in status
    assert "2 nodes online" in status
    held = world.send(countdown=3600)
    until(lambda: world.catalog.find(held.id), GET_S, "the job")
    held.revoke()
    until(lambda: held.state == "REVOKED", GET_S, "the revoke")


def test_one_orchestrator_sends_to_a_quorum_queue_and_by_priority_to_a_classic_one(
    world: RabbitWorld,
):
    world.declare(QUEUE, **QUORUM)
    world.declare("second", **{"x-max-priority": 9})
    bridged: Any = KombuQueue("second", Exchange("second"), routing_key="second", no_declare=True)
    world.app.amqp.queues.add(bridged)

    def send(queue: str, **options: Any) -> Any:
        return world.app.send_task("codex_exec", queue=queue, **options)

    sent = [send("second", priority=priority) for priority in (0, 9, 3, 6, 9)]
    until(lambda: world.left("second") == 5, GET_S, "all lie there")
    world.bridge("--queue", QUEUE, "--queue", "second")
    until(lambda: len(world.task_ids()) == 5, GET_S, "all were ingested")
    best_first = [sent[number].id for number in (1, 4, 3, 2, 0)]
    # RabbitMQ gave them in this order, and so does the ledger
    assert world.task_ids() == best_first
    other = send(QUEUE)
    until(lambda: world.catalog.find(other.id), GET_S, "the job")
    claimed = [world.claim() for _ in range(6)]
    assert [job.task_id for job in claimed if job.queue == "second"] == best_first
    assert [job.priority for job in claimed if job.queue == "second"] == [9, 9, 6, 3, 0]
    for job in claimed:
        world.complete(job, job.queue)
    assert [one.get(timeout=GET_S) for one in (*sent, other)] == ["second"] * 5 + [QUEUE]


def test_a_queue_that_comes_later_keeps_no_other_waiting(world: RabbitWorld):
    world.declare("second")
    bridge = world.bridge("--queue", QUEUE, "--queue", "second")
    sent = world.publish(1, queue="second")
    until(lambda: set(world.task_ids()) == sent, GET_S, "the other queue is fed")
    bridge.wait_for(f"queue {QUEUE} is not there yet")
    world.declare(QUEUE)
    late = world.send()
    until(lambda: world.catalog.find(late.id), GET_S, "the late queue is found")


def test_a_link_that_rabbitmq_refuses_holds_nobody_up(world: RabbitWorld):
    world.declare(QUEUE)
    world.declare("local", **{"x-max-priority": 9})
    bridge = world.bridge()
    refused = world.app.signature("local.report", queue="local", immutable=True)
    sent = world.app.signature("codex_exec", queue=QUEUE).apply_async(link=refused)
    world.complete(world.claim(), "done")
    bridge.wait_for(r"effect \d+ \(link\) of job .* must wait: PreconditionFailed")
    world.declare("second")
    fine = world.app.signature("local.report", queue="second", immutable=True)
    world.app.signature("codex_exec", queue=QUEUE).apply_async(link=fine)
    world.complete(world.claim(), "done")
    until(lambda: world.left("second") == 1, GET_S, "another's link is sent")
    assert sent.state in {"PENDING", "STARTED"}


def test_the_read_ahead_is_bounded(world: RabbitWorld):
    world.declare(QUEUE)
    world.publish(500)
    world.bridge(environ={"DRAWBRIDGE_READ_AHEAD": "100"})
    until(lambda: world.left() + len(world.task_ids()) == 500, GET_S, "the feed has stopped")
    assert 100 <= len(world.task_ids()) < 300


def test_a_purge_reaches_what_was_read_ahead(world: RabbitWorld):
    world.declare(QUEUE)
    world.publish(300)
    world.bridge(environ={"DRAWBRIDGE_READ_AHEAD": "100"})
    until(lambda: len(world.task_ids()) >= 100, GET_S, "some are read ahead")
    until(lambda: world.left() + len(world.task_ids()) == 300, GET_S, "the feed has stopped")
    running = world.claim()
    [said] = world.app.control.broadcast(
        "purge", {"queue": QUEUE}, reply=True, timeout=GET_S, limit=1, destination=["bridge@here"]
    )
    counts = re.findall(r"(\d+) (?:purged|read ahead)", said["bridge@here"]["ok"])
    assert sum(int(one) for one in counts) == 299
    assert world.left() == 0
    gone = next(one for one in sorted(world.task_ids()) if one != running.task_id)
    until(lambda: world.app.AsyncResult(gone).state == "REVOKED", GET_S, "it is told")
    world.complete(running, "done")
    assert world.app.AsyncResult(running.task_id).get(timeout=GET_S) == "done"

    def waiting() -> int:
        with world.ledger.read() as conn:
            return backlog(conn, QUEUE, limit=1000)

    until(lambda: waiting() == 0, GET_S, "all is cancelled")
    late = world.send()
    assert world.claim().task_id == late.id
