"""That no message is lost or doubled between a Redis broker and the ledger, whoever is killed."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import sqlalchemy as sa
from celery import chord, group, states
from celery.exceptions import InvalidTaskError

from broker.bridge.inbox import LEASE_MS
from broker.bridge.revokes import HEARD
from broker.ledger import outbox
from broker.ledger.fleet import backlog
from broker.ledger.jobs import jobs
from broker.ledger.models import EventRow
from broker.records import NewJob
from broker.states import Status
from tests.e2e.bridges import QUEUE, ROOT, World, world_of
from tests.processes import Process
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60
STAMP = {"stamped_headers": ["order"], "order": "7"}


@pytest.fixture
def world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    """Give one world without a bridge."""
    with world_of(start_valkey, tmp_path, process) as made:
        yield made


@pytest.fixture
def durable_world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    """Give one whose Celery broker keeps its messages over a restart."""

    def start() -> Valkey:
        return start_valkey("--appendonly", "yes", "--appendfsync", "always")

    with world_of(start, tmp_path, process) as made:
        yield made


def task_ids(world: World) -> list[str]:
    with world.ledger.read() as conn:
        return list(conn.scalars(sa.select(jobs.c.task_id)))


def ingested(world: World) -> int:
    with world.ledger.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one())


def untold(world: World) -> int:
    with world.ledger.read() as conn:
        return outbox.waiting(conn)


def conflicts(world: World) -> int:
    with world.ledger.read() as conn:
        query = sa.select(sa.func.count()).where(EventRow.message == "ingest_conflict")
        return int(conn.execute(query).scalar_one())


def push(world: World, count: int, *, queue: str = QUEUE) -> set[str]:
    """Send many messages fast: one is made by Celery, the others are its copies."""
    with world.raw() as client:
        parked = world.app.send_task("codex_exec", kwargs={"n": 0}, queue="parked")
        template = json.loads(until(lambda: client.lpop("parked"), GET_S, "the template"))
        ids = {f"{parked.id[:-8]}{n:08x}" for n in range(count)}
        pipe = client.pipeline(transaction=False)
        for task_id in sorted(ids):
            template["headers"]["id"] = task_id
            pipe.lpush(queue, json.dumps(template))
        pipe.execute()
    return ids


@pytest.mark.faults
def test_kill_while_draining_thousands_loses_none_and_doubles_none(world: World):
    """Kill the bridge over and over in the middle of a backlog; every message is one row."""
    sent = push(world, 6_000)
    rng = random.Random(7)
    kills_in_flight = 0
    for number in range(6):
        bridge = world.bridge(name=f"bridge{number}")
        before = ingested(world)
        goal = before + rng.randrange(50, 900)
        until(lambda: ingested(world) >= min(goal, 6_000), 60, "some were ingested")  # noqa: B023
        bridge.kill()
        kills_in_flight += sum(world.leftovers().values()) > 0
    assert kills_in_flight >= 4, "the kills came too late to prove anything"
    world.bridge(name="last")
    until(lambda: ingested(world) >= len(sent), 90, lambda: str(world.leftovers()))
    assert Counter(task_ids(world)) == Counter(sent)
    until(lambda: not sum(world.leftovers().values()), 30, lambda: str(world.leftovers()))
    assert conflicts(world) == 0


@pytest.mark.faults
def test_two_bridges_share_a_queue_and_one_takes_over_what_the_other_left(world: World):
    first, second = world.bridge(name="one"), world.bridge(name="two")
    sent = push(world, 1_500)
    until(lambda: ingested(world) >= 300, 60, "some were ingested")
    first.kill()
    until(lambda: ingested(world) >= len(sent), 60, lambda: str(world.leftovers()))
    assert Counter(task_ids(world)) == Counter(sent)
    assert second.returncode is None
    until(lambda: not sum(world.leftovers().values()), 30, lambda: str(world.leftovers()))


@pytest.mark.faults
def test_a_frozen_bridge_that_wakes_after_its_lease_loses_and_doubles_nothing(world: World):
    first = world.bridge(name="one")
    sent = push(world, 3_000)
    until(lambda: frozen_with_messages(world, first), 30, "a freeze between inbox and ledger")
    with world.raw() as client:
        until(
            lambda: not client.keys("drawbridge.inbox-owner:*"), LEASE_MS / 1000 + 5, "lease's end"
        )
        world.bridge(name="two")
        until(lambda: not client.llen(QUEUE), 60, "the other one drains")
    first.send(signal.SIGCONT)
    until(lambda: ingested(world) >= len(sent), 60, lambda: str(world.leftovers()))
    late = push(world, 200)
    until(lambda: ingested(world) >= len(sent | late), 60, lambda: str(world.leftovers()))
    assert Counter(task_ids(world)) == Counter(sent | late)
    until(lambda: not sum(world.leftovers().values()), 30, lambda: str(world.leftovers()))
    assert conflicts(world) == 0


def frozen_with_messages(world: World, bridge: Process) -> bool:
    """Freeze a bridge that holds messages, but not SQLite's lock, which would stop everybody."""
    bridge.send(signal.SIGSTOP)
    inbox = sum(n for key, n in world.leftovers().items() if key != QUEUE)
    path = world.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            inbox = 0
    if inbox:
        return True
    bridge.send(signal.SIGCONT)
    return False


@pytest.mark.faults
def test_a_locked_ledger_stops_the_drain_and_loses_nothing(world: World):
    world.bridge()
    sent = push(world, 50)
    until(lambda: len(task_ids(world)) == 50, GET_S, "all were ingested")
    until(lambda: not sum(world.leftovers().values()), GET_S, "and settled")
    with world.ledger.write():  # SQLite has one writer, and now it is us
        more = push(world, 400)
        with world.raw() as client:
            until(lambda: client.keys("drawbridge.inbox:*"), GET_S, "some are in the inbox")
            until(lambda: client.llen(QUEUE) < 400, GET_S, "and no longer in the queue")
            left = client.llen(QUEUE)
            assert left >= 300
            time.sleep(1)  # nothing to wait for: nothing may happen
            assert client.llen(QUEUE) == left
    until(lambda: ingested(world) >= len(sent | more), 60, lambda: str(world.leftovers()))
    assert Counter(task_ids(world)) == Counter(sent | more)


@pytest.mark.faults
def test_a_broker_that_restarts_is_found_again(durable_world: World):
    world = durable_world
    world.bridge()
    first = push(world, 20)
    until(lambda: len(task_ids(world)) == 20, GET_S, "all were ingested")
    world.broker.kill()
    world.broker.start()
    second = push(world, 20)
    until(lambda: ingested(world) >= len(first | second), 60, "the drain came back")
    sent = world.send()
    job = until(lambda: world.catalog.find(sent.id), GET_S, "the job")
    world.queue.cancel(job.id)
    until(lambda: sent.state == states.REVOKED, 30, "the relay came back")


@pytest.mark.faults
def test_a_result_backend_that_is_away_gets_every_result_later(
    world: World, start_valkey: Callable[..., Valkey]
):
    backend = start_valkey()
    bridge = world.bridge(environ={"DRAWBRIDGE_RESULT_BACKEND": backend.url})
    backend.stop()
    sent = [world.send(kwargs={"n": n}) for n in range(5)]
    for _ in sent:
        world.complete(world.claim(), "kept")  # a worker's 200 never waits for Celery
    bridge.wait_for(r"effect \d+ \(st(ate|ore)\) of job .* must wait")
    backend.start()
    with backend.client() as client:
        keys = [f"celery-task-meta-{one.id}" for one in sent]
        until(lambda: all(b"kept" in (v or "").encode() for v in client.mget(keys)), 30, "results")


@pytest.mark.faults
def test_a_revoke_that_a_killed_bridge_had_heard_is_carried_out_by_the_next(world: World):
    bridge = world.bridge()
    held, stamped = world.send(countdown=3600), world.send(countdown=3600, **STAMP)
    for sent in (held, stamped):
        until(lambda sent=sent: world.catalog.find(sent.id), 60, "the job")
    # what a dead bridge was about to tell is another's after a minute only, and comes first
    until(lambda: not untold(world), what="all so far is told")
    with world.ledger.write():  # SQLite has one writer: it can be heard, and not carried out
        held.revoke()
        world.app.control.revoke_by_stamped_headers({"order": "7"})
        heard = world.reservations.client
        until(lambda: heard.hlen(HEARD) == 2, 60, "both are heard")
        bridge.kill()
    assert {world.catalog.find(one.id).status for one in (held, stamped)} == {Status.QUEUED}
    world.bridge(name="next")
    for sent in (held, stamped):
        until(lambda sent=sent: sent.state == states.REVOKED, 60, "it is revoked")
    until(lambda: not heard.hlen(HEARD), 60, "and not left for yet another")


def test_a_clean_stop_is_quick_and_leaves_nothing_behind(world: World):
    bridge = world.bridge()
    push(world, 500)
    until(lambda: ingested(world) >= 100, GET_S, "some were ingested")
    assert bridge.terminate(timeout=40) == 0
    with world.raw() as client:
        assert not client.keys("drawbridge.inbox*")
        assert ingested(world) + int(client.llen(QUEUE)) == 500


# -- what is in the messages ----------------------------------------------------------------------


def test_priorities_come_in_kombus_order_and_stay_in_it(world: World):
    sent = [world.send(priority=priority) for priority in (9, 0, 6, 3, 0)]
    world.bridge()
    until(lambda: len(task_ids(world)) == 5, GET_S, "all were ingested")
    claimed = [world.claim() for _ in range(5)]
    # lower goes first for kombu, higher for the ledger
    assert [(job.task_id, job.priority) for job in claimed] == [
        (sent[1].id, 0), (sent[4].id, 0), (sent[3].id, -3), (sent[2].id, -6), (sent[0].id, -9),
    ]  # fmt: skip


def test_a_message_on_another_priority_list_is_seen_while_the_first_is_empty(world: World):
    world.bridge()
    sent = world.send(priority=6)
    until(lambda: world.catalog.find(sent.id), GET_S, "the job")


def test_an_eta_is_kept_by_us_and_not_by_the_broker(world: World):
    world.bridge()
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    sent = world.send(eta=due)
    until(lambda: world.catalog.find(sent.id), GET_S, "the job")
    until(lambda: not sum(world.leftovers().values()), GET_S, "the message is settled")
    assert world.claim().task_id == sent.id
    assert datetime.now(UTC) >= due


def test_poison_ends_as_rejected_rows_and_does_not_stop_the_next_message(world: World):
    bad = [b"", b"{", b"\xff" * 10, b"[" * 5_000, b"null", b'{"headers": 1}']
    with world.raw() as client:
        for raw in bad:
            client.lpush(QUEUE, raw)
    no_time = world.send(headers={"eta": "soon"})
    too_large = world.send(kwargs={"x": "y" * (1024 * 1024)})
    wrong_repository = world.send(kwargs={"repository": "../../etc"})
    good = world.send(kwargs={"repository": "Org/Repo"})
    bridge = world.bridge()
    job = world.claim()
    assert job.task_id == good.id
    with world.ledger.read() as conn:
        rows = conn.execute(
            sa.select(jobs.c.status, jobs.c.reason).where(jobs.c.id != job.id)
        ).all()
    assert len(rows) == len(bad) + 3
    assert {tuple(row) for row in rows} == {("failed", "rejected")}
    for refused in (no_time, too_large, wrong_repository):
        with pytest.raises(InvalidTaskError):
            refused.get(timeout=GET_S)
    assert "rejected task" in bridge.output()


def test_a_rejected_part_does_not_leave_its_chord_waiting(world: World):
    world.bridge()
    world.local_worker()
    part = world.app.signature("codex_exec", queue=QUEUE, headers={"expires": "never"})
    part.options["headers"] = {"eta": "soon"}
    body = world.app.signature("local.collect", queue="local")
    sent = chord(group([part], app=world.app), body, app=world.app).apply_async()
    with pytest.raises(Exception, match="eta"):
        sent.get(timeout=GET_S)


def test_celerys_own_tasks_in_a_bridged_queue_are_executed_by_the_bridge(world: World):
    world.bridge()
    sent = world.app.send_task("celery.accumulate", args=(1, 2), kwargs={"index": 1}, queue=QUEUE)
    assert sent.get(timeout=GET_S) == 2
    assert task_ids(world) == []


def test_the_same_message_again_is_a_duplicate_and_another_one_a_conflict(world: World):
    sent = world.send(task_id="order-7")
    with world.raw() as client:
        raw: Any = client.lindex(QUEUE, 0)
        client.lpush(QUEUE, raw)
        bridge = world.bridge()
        until(lambda: task_ids(world) == ["order-7"], GET_S, "it was ingested")
        other = json.loads(raw)
        other["headers"]["retries"] = 1
        client.lpush(QUEUE, raw, json.dumps(other))
    until(lambda: "conflict task order-7" in bridge.output(), GET_S, "the conflict is told")
    assert task_ids(world) == ["order-7"]
    assert conflicts(world) == 1
    world.complete(world.claim(), "once")
    assert sent.get(timeout=GET_S) == "once"


def test_the_read_ahead_is_bounded(world: World):
    sent = push(world, 300)
    world.bridge(environ={"DRAWBRIDGE_READ_AHEAD": "100"})
    with world.raw() as client:
        until(lambda: ingested(world) >= 100, GET_S, "up to the mark")
        assert len(task_ids(world)) == 100
        assert client.llen(QUEUE) == 200
        world.complete(world.claim(), None)
        until(lambda: len(task_ids(world)) == 101, GET_S, "one more")
        assert client.llen(QUEUE) == len(sent) - 101


def test_a_purge_reaches_what_was_read_ahead(world: World, tmp_path: Path):
    held = world.send()
    world.bridge(environ={"DRAWBRIDGE_READ_AHEAD": "100"})
    job = world.claim()
    assert job.task_id == held.id
    by_http = world.queue.create(NewJob(task_id=str(uuid4()), queue=QUEUE, type="t"))
    sent = push(world, 299)
    with world.raw() as client:
        until(lambda: ingested(world) >= 101, GET_S, "up to the mark")
        assert client.llen(QUEUE) > 0
        (tmp_path / "bridge_app.py").write_text(
            "from broker.bridge.app import install\n"
            "from tests.e2e.local_app import app\n"
            "install(app)\n"
        )
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        purge = [sys.executable, "-m", "celery", "-A", "bridge_app", "control", "-t", "20"]
        environ = os.environ | world.environment | world.own_app | {"PYTHONPATH": path}
        said = subprocess.run(
            [*purge, "-d", "bridge@here", "purge", QUEUE],
            check=True, capture_output=True, text=True, env=environ, cwd=tmp_path,
        ).stdout  # fmt: skip
        assert "purged from the broker" in said
        assert client.llen(QUEUE) == 0
    late = world.send()

    def waiting() -> int:
        with world.ledger.read() as conn:
            return backlog(conn, QUEUE, limit=1000)

    until(lambda: late.id in task_ids(world) and waiting() == 2, GET_S, "all is cancelled")
    counts = [int(one) for one in re.findall(r"(\d+) (?:purged|read ahead)", said)]
    assert sum(counts) == len(sent)
    # whoever waits is told; what ran, what came over HTTP and what was sent later stays
    gone = world.app.AsyncResult(min(sent))
    until(lambda: gone.state == "REVOKED", GET_S, "it is told")
    world.complete(job, "done")
    assert held.get(timeout=GET_S) == "done"
    assert [world.claim().task_id for _ in range(2)] == [by_http.task_id, late.id]


def test_a_purge_of_another_queue_is_refused(world: World):
    world.bridge()
    [said] = world.app.control.broadcast(
        "purge", {"queue": "other"}, reply=True, timeout=GET_S, limit=1
    )
    assert said["bridge@here"] == {"error": "'other' is not bridged here; remote is"}


def test_a_prefix_of_all_keys_is_honoured(world: World, tmp_path: Path):
    (tmp_path / "prefixed.py").write_text(
        "from tests.e2e.local_app import app\n"
        "app.conf.broker_transport_options = {'global_keyprefix': 'acme:'}\n"
        "app.conf.broker_connection_retry_on_startup = True\n"
    )
    environ = {
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}",
        "APP_BROKER": world.broker_url,
        "APP_BACKEND": world.backend_url,
    }
    world.bridge("-A", "prefixed", environ=environ)
    world.app.conf.broker_transport_options = {"global_keyprefix": "acme:"}
    sent = world.send(priority=3)
    world.complete(world.claim(), "prefixed")
    assert sent.get(timeout=GET_S) == "prefixed"
    with world.raw() as client:
        ours: Any = client.keys("*drawbridge.*")
    assert all(key.startswith(b"acme:") for key in ours)


def test_a_bridge_without_tables_or_broker_says_so(world: World, process: Callable[..., Process]):
    argv = [str(Path(__file__).parents[2] / ".venv/bin/drawbridge"), "bridge"]
    environ = {**world.environment, "DRAWBRIDGE_BROKER_URL": ""}
    nowhere = process(argv, env=environ)
    assert nowhere.wait() == 1
    assert "DRAWBRIDGE_BROKER_URL" in nowhere.output()
    mute = process(argv, env={**world.environment, "DRAWBRIDGE_RESULT_BACKEND": ""})
    assert mute.wait() == 1
    assert "DRAWBRIDGE_RESULT_BACKEND" in mute.output()
    environ = {**world.environment, "DRAWBRIDGE_DATABASE_URL": f"sqlite:///{world.folder / 'x.db'}"}
    empty = process(argv, env=environ)
    assert empty.wait() == 1
    assert "drawbridge migrate" in empty.output()


def test_bridge_and_beat_together_do_the_maintenance(world: World, process: Callable[..., Process]):
    bridge = world.bridge("-l", "DEBUG")  # at INFO what beat nudges is not worth a line
    beat = str(Path(__file__).parents[2] / ".venv/bin/drawbridge")
    started = process([beat, "beat"], env={"DRAWBRIDGE_BROKER_URL": world.broker_url})
    bridge.wait_for(r"Task drawbridge\.expire_leases\[.*succeeded")
    bridge.wait_for(r"Task drawbridge\.release_due_retries\[.*succeeded")
    with redis.Redis.from_url(world.backend_url) as client:
        assert not client.keys("celery-task-meta-*")
    assert started.terminate() == 0
