"""What an orchestrator that knows nothing of us gets back: results, failures, canvases, events."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group, states
from celery.events.state import State
from celery.exceptions import (
    InvalidTaskError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    WorkerLostError,
)

from broker.bridge.settle import sent_id
from broker.errors import Unavailable
from broker.ledger.credentials import Credentials
from broker.ledger.fleet import known
from broker.policy import Policy
from broker.records import ClaimRequest, Job
from broker.redrive_shapes import Redrive
from tests.e2e.bridges import QUEUE, World, holder, world_of
from tests.processes import Process
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60
#: another bridged queue
SECOND = "second"


@pytest.fixture(scope="module")
def bridged(
    tmp_path_factory: pytest.TempPathFactory, module_process: Callable[..., Process]
) -> Iterator[World]:
    """Give one world with a bridge and an ordinary worker; tests keep to their own tasks."""
    servers: list[Valkey] = []

    def start(*options: str) -> Valkey:
        servers.append(Valkey(*options).start())
        return servers[-1]

    with world_of(start, tmp_path_factory.mktemp("world"), module_process) as world:
        world.bridge(environ={"DRAWBRIDGE_QUEUES": f"{QUEUE},{SECOND}"})
        world.local_worker()
        yield world
    for server in servers:
        server.remove()


@pytest.fixture(scope="module")
def module_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """Start processes that live as long as the module's tests."""
    folder, started = tmp_path_factory.mktemp("logs"), list[Process]()

    def start(argv: Any, *, env: Any = None, cwd: Path | None = None) -> Process:
        started.append(Process(argv, log=folder / f"{len(started)}.log", env=env, cwd=cwd))
        return started[-1]

    yield start
    for one in reversed(started):
        one.close()


def claim(world: World, task_id: str) -> Job:
    job = world.claim()
    assert job.task_id == task_id
    return job


def test_get_returns_what_the_worker_completed_with(bridged: World):
    sent = bridged.send(kwargs={"repository": "Org/Repo", "n": 1})
    job = claim(bridged, sent.id)
    assert (job.type, job.payload) == ("codex_exec", {"repository": "Org/Repo", "n": 1})
    until(lambda: sent.state == states.STARTED, GET_S, "STARTED")
    assert sent.info["hostname"] == "worker-1@edge"
    bridged.complete(job, {"summary": "done"})
    assert sent.get(timeout=GET_S) == {"summary": "done"}
    assert sent.successful()


def test_the_summary_is_the_result_when_there_is_no_other(bridged: World):
    sent = bridged.send()
    job = claim(bridged, sent.id)
    bridged.queue.complete(job.id, holder(job), result_summary="all well")
    assert sent.get(timeout=GET_S) == "all well"


def test_a_failure_is_raised_with_its_type_and_traceback(bridged: World):
    sent = bridged.send()
    job = claim(bridged, sent.id)
    bridged.fail(job, "no such ref", error_type="ValueError", traceback="Traceback: here")
    with pytest.raises(ValueError, match="no such ref"):
        sent.get(timeout=GET_S)
    assert sent.traceback == "Traceback: here"


def test_a_failure_without_a_type_is_a_remote_job_error(bridged: World):
    sent = bridged.send()
    bridged.fail(claim(bridged, sent.id), "codex said no")
    with pytest.raises(Exception, match="codex said no") as raised:
        sent.get(timeout=GET_S)
    assert type(raised.value).__name__ == "RemoteJobError"
    stored = bridged.app.backend.get(bridged.app.backend.get_key_for_task(sent.id))
    assert b'"exc_module": "drawbridge"' in stored


def test_time_limits_go_with_the_job_and_come_back_as_celerys_own(bridged: World):
    sent = bridged.send(time_limit=60, soft_time_limit=50)
    job = claim(bridged, sent.id)
    assert (job.time_limit_s, job.soft_time_limit_s) == (60, 50)
    bridged.fail(job, "over", error_type="celery.exceptions.SoftTimeLimitExceeded")
    with pytest.raises(SoftTimeLimitExceeded, match="over"):
        sent.get(timeout=GET_S)


def test_a_type_that_would_end_the_reader_does_not(bridged: World):
    sent = bridged.send()
    bridged.fail(claim(bridged, sent.id), "bye", error_type="SystemExit")
    with pytest.raises(Exception, match="SystemExit: bye") as raised:
        sent.get(timeout=GET_S)
    assert type(raised.value).__name__ == "RemoteJobError"


def test_a_retryable_failure_is_retry_for_celery(bridged: World):
    sent = bridged.send()
    bridged.fail(claim(bridged, sent.id), "try again", retryable=True, retry_after_s=0.0)
    until(lambda: sent.state == states.RETRY, GET_S, "RETRY")
    job = bridged.claim()
    assert (job.task_id, job.attempt) == (sent.id, 2)
    bridged.complete(job, "second time")
    assert sent.get(timeout=GET_S) == "second time"


def policy(**said: Any) -> dict[str, Any]:
    return {"headers": {"drawbridge": said}}


def test_a_message_says_how_often_it_is_tried_and_who_may_run_it(bridged: World):
    sent = bridged.send(**policy(max_attempts=2, required_capabilities=["gpu"]))
    job = until(lambda: bridged.catalog.find(sent.id), GET_S, "the job")
    assert job.max_attempts == 2
    # what comes later is for anybody, and this is not
    other = bridged.send()
    bridged.complete(claim(bridged, other.id), None)
    assert bridged.claim_now() is None
    for attempt in (1, 2):
        job = until(lambda: bridged.claim_now("w-gpu", able=("gpu",)), GET_S, "its job")
        assert (job.task_id, job.attempt) == (sent.id, attempt)
        bridged.fail(job, f"try {attempt}", retryable=True, retry_after_s=0.0)
    with pytest.raises(Exception, match="try 2"):
        sent.get(timeout=GET_S)


def test_a_wrong_policy_is_refused_and_the_refusal_names_the_field(bridged: World):
    wrong = {
        "maxAttempts is not": policy(max_attempts=0),
        "maxAttempts is no": policy(max_attempts="3"),
        "requiredCapabilities is not": policy(required_capabilities="gpu"),
        "requiredCapabilities is no": policy(required_capabilities=["gpu", ""]),
        "affinityKey is not": policy(affinity_key=7),
        "header is not an object": {"headers": {"drawbridge": ["gpu"]}},
    }
    every = {text: bridged.send(**said) for text, said in wrong.items()}
    for text, sent in every.items():
        with pytest.raises(InvalidTaskError, match=text):
            sent.get(timeout=GET_S)
        assert sent.state == states.FAILURE
    assert bridged.claim_now() is None


def test_lost_leases_end_as_a_lost_worker(bridged: World):
    sent = bridged.send(headers={"drawbridge": {"maxAttempts": 1}})
    job = bridged.claim(lease_seconds=1)
    assert job.task_id == sent.id
    with pytest.raises(WorkerLostError, match="lost its lease"):
        sent.get(timeout=GET_S)


def test_a_cancelled_job_is_revoked_for_celery(bridged: World):
    sent = bridged.send(countdown=3600)
    job = until(lambda: bridged.catalog.find(sent.id), GET_S, "the job")
    bridged.queue.cancel(job.id)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=GET_S)


def test_an_expired_task_is_revoked_without_running(bridged: World):
    sent = bridged.send(countdown=3600, expires=1)
    with pytest.raises(TaskRevokedError, match="expired"):
        sent.get(timeout=GET_S)


def test_a_revoke_from_celery_cancels_the_job(bridged: World):
    sent = bridged.send(countdown=3600)
    until(lambda: bridged.catalog.find(sent.id), GET_S, "the job")
    sent.revoke()
    job = until(
        lambda: (j := bridged.catalog.find(sent.id)) and j.status == "cancelled" and j,
        GET_S,
        "the job is cancelled",
    )
    assert job.requested_by == "celery"
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=GET_S)


def test_a_task_revoked_before_it_comes_is_cancelled_when_it_comes(bridged: World):
    task_id = "11111111-2222-4333-8444-555555555555"
    bridged.app.control.revoke(task_id)
    with bridged.reservations.client as client:
        until(lambda: client.zscore("{db:}:revoked-tasks", task_id), GET_S, "the revoke is kept")
    sent = bridged.send(task_id=task_id)
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=GET_S)


def test_a_revoke_by_stamps_ends_what_carries_them(bridged: World):
    stamps = {"stamped_headers": ["order"], "order": ["7", "8"]}
    waiting = [bridged.send(countdown=3600, **stamps) for _ in range(2)]
    other = bridged.send(countdown=3600, stamped_headers=["order"], order="9")
    for sent in (*waiting, other):
        until(lambda sent=sent: bridged.catalog.find(sent.id), GET_S, "the job")
    bridged.app.control.revoke_by_stamped_headers({"order": "8"})
    for sent in waiting:
        with pytest.raises(TaskRevokedError):
            sent.get(timeout=GET_S)
    assert bridged.catalog.find(other.id).status == "queued"
    later = bridged.send(**stamps)
    with pytest.raises(TaskRevokedError):
        later.get(timeout=GET_S)
    other.revoke()


def test_a_running_job_hears_of_a_revoke_and_is_not_overwritten(bridged: World):
    sent = bridged.send()
    job = claim(bridged, sent.id)
    until(lambda: sent.state == states.STARTED, GET_S, "STARTED")
    sent.revoke(terminate=True)
    until(lambda: bridged.catalog.get(job.id).cancel_requested_at, GET_S, "the request")
    assert sent.state == states.STARTED
    bridged.queue.cancel_ack(job.id, holder(job))
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=GET_S)


def test_a_result_nobody_wants_is_not_stored(bridged: World):
    sent = bridged.send(ignore_result=True)
    bridged.complete(claim(bridged, sent.id), "unwanted")
    after = bridged.send()
    bridged.complete(claim(bridged, after.id), "wanted")
    assert after.get(timeout=GET_S) == "wanted"
    assert sent.state == states.PENDING


# -- canvases ---------------------------------------------------------------------------------


def remote(world: World, **kwargs: Any) -> Any:
    return world.app.signature("codex_exec", kwargs=kwargs, queue=QUEUE)


def local(world: World, name: str, *args: Any, **kwargs: Any) -> Any:
    return world.app.signature(f"local.{name}", args=args, kwargs=kwargs, queue="local")


def test_a_chain_into_an_ordinary_worker(bridged: World):
    sent = chain(
        remote(bridged), local(bridged, "report", title="t"), app=bridged.app
    ).apply_async()
    bridged.complete(claim(bridged, sent.parent.id), {"changedFiles": ["a.py"]})
    assert sent.get(timeout=GET_S) == {"title": "t", "changed": ["a.py"]}
    # as in stock Celery, the next link is sent before the result is stored
    assert sent.parent.get(timeout=GET_S) == {"changedFiles": ["a.py"]}
    assert [child.id for child in sent.parent.children] == [sent.id]


def test_a_chain_out_of_an_ordinary_worker_and_on(bridged: World):
    links = (
        local(bridged, "prepare", "w"),
        remote(bridged, n=2),
        local(bridged, "report", title="t"),
    )
    sent = chain(*links, app=bridged.app).apply_async()
    job = claim(bridged, sent.parent.id)
    assert job.payload == {"n": 2, "args": [{"word": "w"}]}
    bridged.complete(job, {"changedFiles": []})
    assert sent.get(timeout=GET_S) == {"title": "t", "changed": []}


def test_a_failure_fails_the_rest_of_the_chain_and_calls_the_errback(bridged: World):
    errback = local(bridged, "prepare")
    sent = chain(remote(bridged), local(bridged, "report", title="t"), app=bridged.app).apply_async(
        link_error=errback
    )
    bridged.fail(claim(bridged, sent.parent.id), "broken", error_type="KeyError")
    with pytest.raises(KeyError):
        sent.get(timeout=GET_S)
    assert sent.parent.state == states.FAILURE


def test_links_are_sent_with_the_result(bridged: World):
    link = local(bridged, "report", title="linked")
    sent = remote(bridged).apply_async(link=[link, local(bridged, "report", title="too")])
    bridged.complete(claim(bridged, sent.id), {"changedFiles": ["x"]})
    assert sent.get(timeout=GET_S) == {"changedFiles": ["x"]}
    (links,) = sent.children  # one group, as an ordinary worker sends several links
    first, second = links.results
    assert first.get(timeout=GET_S) == {"title": "linked", "changed": ["x"]}
    assert second.get(timeout=GET_S) == {"title": "too", "changed": ["x"]}


def test_an_errback_is_sent_with_the_id_of_the_failed_task(bridged: World):
    sent = remote(bridged).apply_async(link_error=local(bridged, "prepare"))
    job = claim(bridged, sent.id)
    bridged.fail(job, "broken")
    errback = bridged.app.AsyncResult(sent_id(job, "errback", 0))
    assert errback.get(timeout=GET_S) == {"word": sent.id}


def test_a_redriven_job_ends_anew_and_its_links_hear_of_it(bridged: World):
    link = local(bridged, "report", title="linked")
    sent = remote(bridged).apply_async(link=link, link_error=local(bridged, "prepare"))
    job = claim(bridged, sent.id)
    bridged.fail(job, "broken", error_type="KeyError")
    with pytest.raises(KeyError):
        sent.get(timeout=GET_S)
    assert bridged.queue.redrive(Redrive(ids=(job.id,))).redriven == 1
    # a result object keeps an end it has seen, so each look needs one of its own
    result = bridged.app.AsyncResult
    until(lambda: result(sent.id).state == states.RETRY, GET_S, "RETRY")
    bridged.complete(claim(bridged, sent.id), {"changedFiles": ["x"]})
    until(lambda: result(sent.id).state == states.SUCCESS, GET_S, "SUCCESS")
    assert result(sent.id).get(timeout=GET_S) == {"changedFiles": ["x"]}
    [child] = result(sent.id).children
    assert child.get(timeout=GET_S) == {"title": "linked", "changed": ["x"]}


def test_a_chain_that_has_failed_does_not_go_on_after_a_redrive(bridged: World):
    rest = local(bridged, "report", title="t")
    sent = chain(remote(bridged), rest, app=bridged.app).apply_async()
    job = claim(bridged, sent.parent.id)
    bridged.fail(job, "broken", error_type="KeyError")
    with pytest.raises(KeyError):
        sent.get(timeout=GET_S)
    bridged.queue.redrive(Redrive(ids=(job.id,)))
    bridged.complete(claim(bridged, job.task_id), {"changedFiles": []})
    result = bridged.app.AsyncResult
    until(lambda: result(job.task_id).state == states.SUCCESS, GET_S, "SUCCESS")
    # whatever was sent to the ordinary worker has been executed before this
    local(bridged, "prepare", "w").apply_async().get(timeout=GET_S)
    assert result(sent.id).state == states.FAILURE


def test_a_chord_of_both_kinds(bridged: World):
    header = group(remote(bridged), local(bridged, "prepare", "w"), app=bridged.app)
    sent = chord(header, local(bridged, "collect"), app=bridged.app).apply_async()
    bridged.complete(bridged.claim(), {"n": 1})
    assert sent.get(timeout=GET_S) == [{"n": 1}, {"word": "w"}]


def test_a_failed_part_fails_the_chord(bridged: World):
    header = group(remote(bridged), local(bridged, "prepare", "w"), app=bridged.app)
    sent = chord(header, local(bridged, "collect"), app=bridged.app).apply_async()
    bridged.fail(bridged.claim(), "part broken")
    with pytest.raises(Exception, match="part broken"):
        sent.get(timeout=GET_S)


# -- events and nodes ---------------------------------------------------------------------------


@pytest.fixture
def state(bridged: World) -> Iterator[State]:
    """Give what a monitor knows, while it listens."""
    found, ended = State(), threading.Event()

    def listen() -> None:
        with bridged.app.connection() as connection:
            receiver = bridged.app.events.Receiver(connection, handlers={"*": found.event})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                if ended.is_set():
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield found
    ended.set()
    bridged.queue.seen("last-word")  # an event that lets the listener see that it has ended
    thread.join(20)


def test_events_show_the_worker_and_its_task(bridged: World, state: State):
    bridged.queue.seen("worker-1")
    until(lambda: "worker-1@edge" in state.workers, GET_S, "the node is heard of")
    assert state.workers["worker-1@edge"].alive
    sent = bridged.send(kwargs={"n": 1})
    bridged.complete(claim(bridged, sent.id), "x")
    sent.get(timeout=GET_S)
    task = until(
        lambda: (t := state.tasks.get(sent.id)) and t.state == states.SUCCESS and t,
        GET_S,
        "the task is heard of",
    )
    assert task.worker.hostname == "worker-1@edge"
    assert task.name == "codex_exec"
    assert task.received <= task.started <= task.succeeded
    assert task.result == "'x'"


@pytest.fixture
def heard(bridged: World) -> Iterator[list[dict[str, Any]]]:
    """Give the events as they come, while somebody listens."""
    found: list[dict[str, Any]] = []
    ended, listening = threading.Event(), threading.Event()

    def listen() -> None:
        with bridged.app.connection() as connection:
            receiver = bridged.app.events.Receiver(connection, handlers={"*": found.append})
            with receiver.consumer_context() as (wire, _, _):
                listening.set()
                while not ended.is_set():
                    with suppress(TimeoutError):
                        wire.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(GET_S)
    yield found
    ended.set()
    thread.join(20)


def test_each_transition_is_one_event_in_order_in_the_name_of_who_made_it(
    bridged: World, heard: list[dict[str, Any]]
):
    def story(sent: Any) -> list[str]:
        return [
            f"{event['hostname'].partition('@')[0]} {event['type'].removeprefix('task-')}"
            for event in heard
            if event.get("uuid") == sent.id
        ]

    def last(sent: Any) -> dict[str, Any]:
        return next(event for event in reversed(heard) if event.get("uuid") == sent.id)

    def waits(sent: Any) -> Job:
        return until(lambda: bridged.catalog.find(sent.id), GET_S, "the job")

    done = bridged.send()
    bridged.complete(claim(bridged, done.id), "x")
    failed = bridged.send()
    bridged.fail(claim(bridged, failed.id), "no", error_type="ValueError", traceback="Trace: here")
    again = bridged.send()
    bridged.fail(claim(bridged, again.id), "again", retryable=True, retry_after_s=0.0)
    bridged.complete(claim(bridged, again.id), "y")
    held = bridged.send(countdown=3600)
    bridged.queue.cancel(waits(held).id)
    stopped = bridged.send()
    job = claim(bridged, stopped.id)
    bridged.queue.cancel(job.id)
    bridged.queue.cancel_ack(job.id, holder(job))
    expired = bridged.send(countdown=3600, expires=1)
    lost = bridged.send(headers={"drawbridge": {"maxAttempts": 1}})
    assert bridged.claim(lease_seconds=1).task_id == lost.id
    rejected = bridged.send(headers={"drawbridge": {"maxAttempts": "many"}})
    for sent in (done, failed, again, held, stopped, expired, lost, rejected):
        until(sent.ready, GET_S, "the end is told")
    # what would be told twice would be told before this
    after = bridged.send()
    bridged.complete(claim(bridged, after.id), "z")
    until(lambda: "worker-1 succeeded" in story(after), GET_S, "the last event")

    mine, ran = ["bridge received"], ["bridge received", "worker-1 started"]
    assert story(done) == [*ran, "worker-1 succeeded"]
    assert last(done)["runtime"] >= 0
    assert last(done)["result"] == "'x'"
    assert story(failed) == [*ran, "worker-1 failed"]
    assert (last(failed)["exception"], last(failed)["traceback"]) == (
        "ValueError('no')", "Trace: here",
    )  # fmt: skip
    assert story(again) == [*ran, "worker-1 retried", "worker-1 started", "worker-1 succeeded"]
    assert story(held) == [*mine, "bridge revoked"]
    assert story(stopped) == [*ran, "worker-1 revoked"]
    assert [last(one)["terminated"] for one in (held, stopped, expired)] == [False, True, False]
    assert story(expired) == [*mine, "bridge revoked"]
    assert last(expired)["expired"]
    # its node may be gone, and an event in its name would bring it back
    assert story(lost) == [*ran, "bridge failed"]
    assert story(rejected) == ["bridge rejected", "bridge failed"]
    clocks = [event["clock"] for event in heard if event.get("uuid") == again.id]
    assert clocks == sorted(clocks)


def test_a_heartbeat_says_what_the_node_does_and_how_busy_its_machine_is(
    bridged: World, heard: list[dict[str, Any]]
):
    sent = bridged.send()
    job = claim(bridged, sent.id)

    def beat() -> dict[str, Any] | None:
        bridged.queue.seen("worker-1", "0.50,1,12.25")
        bridged.app.control.broadcast("heartbeat")  # so that nobody waits for the next by itself
        found = [event for event in heard if event["hostname"] == "worker-1@edge"]
        beats = [event for event in found if event["type"] == "worker-heartbeat"]
        return next((event for event in beats if event["loadavg"] == [0.5, 1.0, 12.25]), None)

    said = until(beat, GET_S, "the heartbeat")
    assert said["active"] == 1
    with bridged.ledger.read() as conn:
        assert said["processed"] == known(conn)["worker-1"].grants - 1
    assert said["freq"] == 10.0
    bridged.complete(job, None)


def test_the_celery_command_lists_and_asks_the_nodes(bridged: World):
    bridged.queue.seen("worker-1")
    job = bridged.send() and bridged.claim()
    everybody = bridged.app.control.inspect(timeout=1)
    until(lambda: "worker-1@edge" in (everybody.ping() or {}), GET_S, "the node answers")
    # of one node alone the answer is there as soon as it has answered
    control = bridged.app.control.inspect(timeout=GET_S, destination=["worker-1@edge"], limit=1)
    assert control.ping() == {"worker-1@edge": {"ok": "pong"}}
    (active,) = control.active()["worker-1@edge"]
    assert (active["id"], active["name"], active["hostname"]) == (
        job.task_id, "codex_exec", "worker-1@edge",
    )  # fmt: skip
    assert control.stats()["worker-1@edge"]["pool"]["implementation"] == "drawbridge"
    assert [q["name"] for q in control.active_queues()["worker-1@edge"]] == [QUEUE, SECOND]
    assert control.registered()["worker-1@edge"] == []
    assert control.query_task(job.task_id)["worker-1@edge"][job.task_id][0] == "active"
    bridged.complete(job, None)


def test_control_commands_become_standing_orders(bridged: World):
    name = f"w-{uuid4().hex[:8]}"
    bridged.queue.hello(name, {"concurrency": 4, "types": ["codex_exec"]})
    bridged.queue.seen(name)
    node = f"{name}@edge"
    control = bridged.app.control
    until(lambda: node in (control.inspect(timeout=1).ping() or {}), GET_S, "the node answers")

    def order(method: str, **said: Any) -> dict[str, str]:
        bridged.queue.seen(name)
        sent = {
            "arguments": said,
            "destination": [node],
            "reply": True,
            "limit": 1,
            "timeout": GET_S,
        }
        (reply,) = control.broadcast(method, **sent)
        return reply[node]

    def slots() -> int:
        bridged.queue.seen(name)
        asked = control.inspect(timeout=GET_S, destination=[node], limit=1)
        return asked.stats()[node]["pool"]["max-concurrency"]

    assert order("pool_shrink", n=1) == {"ok": "pool will shrink to 3"}
    assert slots() == 3
    assert order("pool_shrink", n=100) == {"ok": "pool will shrink to 1"}
    assert order("autoscale", max=2, min=0) == {"ok": "autoscale now max=2 min=0"}
    # its owner allows four, whatever is asked for
    assert order("pool_grow", n=100) == {"ok": "pool will grow to 4"}
    assert slots() == 4
    for method, said in (
        ("pool_grow", {"n": "many"}),
        ("pool_restart", {}),
        ("rate_limit", {"task_name": "codex_exec", "rate_limit": "1/m"}),
        ("time_limit", {"task_name": "codex_exec", "hard": 1}),
        ("cancel_consumer", {"queue": "another"}),
    ):
        assert set(order(method, **said)) == {"error"}, method

    control.shutdown(destination=[node])  # asks for no reply
    until(lambda: bridged.orders.read(name).drain, GET_S, "the order is given")


def test_one_of_two_bridged_queues_is_paused_for_one_worker(bridged: World):
    first = f"w-{uuid4().hex[:8]}"
    task = f"paused.{first}"
    node, control = f"{first}@edge", bridged.app.control
    policy = Policy(queues=(QUEUE, SECOND), types=(task,))
    tokens = Credentials(bridged.ledger)
    tokens.create("worker", worker_id=first, policy=policy, now=bridged.queue.clock.now())
    said = {"destination": [node], "reply": True, "limit": 1, "timeout": GET_S}

    def asked(call: Callable[..., Any], *arguments: str) -> Any:
        bridged.queue.seen(first)
        [answer] = call(*arguments, **said)
        return answer[node]

    def consumes() -> list[str]:
        bridged.queue.seen(first)
        inspect = control.inspect(timeout=GET_S, destination=[node], limit=1)
        return [one["name"] for one in inspect.active_queues()[node]]

    def claim() -> list[str]:
        paused = frozenset(bridged.orders.read(first).paused)
        request = ClaimRequest(
            worker_id=first, policy=policy, lease_seconds=60, paused=paused, max_jobs=2
        )
        with suppress(Unavailable):  # the index of a queue that is new is being built
            return [job.task_id for job in bridged.queue.claim(request)]
        return []

    bridged.queue.seen(first)
    until(lambda: node in (control.inspect(timeout=1).ping() or {}), GET_S, "the node answers")
    assert consumes() == [QUEUE, SECOND]
    for _ in range(2):
        paused = asked(control.cancel_consumer, QUEUE)
        assert paused == {"ok": f"no longer consuming from {QUEUE}"}
    assert consumes() == [SECOND]
    here, there = (bridged.app.send_task(task, queue=queue) for queue in (QUEUE, SECOND))
    for one in (here, there):
        until(lambda one=one: bridged.catalog.find(one.id), GET_S, "the job")  # type: ignore[misc]
    assert until(claim, GET_S, "what is not paused") == [there.id]
    assert claim() == []
    for _ in range(2):
        assert asked(control.add_consumer, QUEUE) == {"ok": f"add consumer {QUEUE}"}
    assert set(asked(control.add_consumer, "nowhere")) == {"error"}
    assert consumes() == [QUEUE, SECOND]
    assert until(claim, GET_S, "what was paused") == [here.id]
