"""Orders to workers: durable, repeatable, heard at once, and by whoever missed the word too."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from broker.policy import Policy
from broker.records import ClaimRequest, Job
from tests.contract.edge.conftest import Caller, Edge, MakeEdge
from tests.processes import until

NONE = {"jobId": None, "n": None, "queue": None}
RESUME = NONE | {"kind": "resume"}
DRAIN = NONE | {"kind": "drain"}
OWN = NONE | {"kind": "concurrency"}


def control(worker: Caller, cursor: int = 0, wait_s: float = 0) -> Any:
    answer = worker.get(f"/workers/control?instanceId=i&cursor={cursor}&waitSeconds={wait_s}")
    assert answer.status_code == 200, answer.text
    return answer.json


def waiting(edge: Edge, pool: ThreadPoolExecutor, call: Any, *args: Any) -> "Future[Any]":
    """Begin a call and return once it waits."""
    before = len(edge.services.waiting)
    future = pool.submit(call, *args)
    until(lambda: len(edge.services.waiting) > before or future.done())
    return future


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_what_no_worker_is_called_is_not_found(edge: Edge, user: Caller) -> None:
    for name in ("%00", "a%00b", "%F0%9F%98%80", "w" * 300):
        for what, body in (("drain", None), ("pause", {"queue": "q"})):
            answer = user.post(f"/workers/{name}/{what}", body)
            assert answer.status_code == 404


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_orders_stand_until_they_change_and_repeats_change_nothing(
    edge: Edge, user: Caller, worker: Caller
) -> None:
    assert control(worker) == {"cursor": 0, "orders": []}
    for _ in range(2):
        standing = user.post("/workers/w1/drain").json
        assert standing == {
            "workerId": "w1", "drain": True, "concurrency": None, "pausedQueues": [], "cursor": 1,
        }  # fmt: skip
    assert control(worker) == {"cursor": 1, "orders": [DRAIN, OWN]}
    assert control(worker, 1) == {"cursor": 1, "orders": []}
    assert user.post("/workers/w1/concurrency", {"concurrency": 3}).json["cursor"] == 2
    assert user.post("/workers/w1/resume").json["drain"] is False
    user.post("/workers/w1/resume")
    # whoever has heard of nothing yet is told how all of it stands
    assert control(worker) == {"cursor": 3, "orders": [RESUME, OWN | {"n": 3}]}
    assert edge.worker("w2").get("/workers/control").json == {"cursor": 0, "orders": []}


def test_an_edge_that_starts_anew_has_lost_no_order(make_edge: MakeEdge, sqlite_url: str) -> None:
    first = make_edge(sqlite_url)
    worker = first.worker()
    first.user().post("/workers/w1/drain")
    second = make_edge(sqlite_url)
    second.services.queue.reservations.client.flushall()
    again = Caller(second.app, worker.headers, "w1")
    assert control(again)["orders"] == [DRAIN, OWN]
    # and Redis knows it again, for heartbeats
    until(lambda: again.get("/workers/control").headers.get("Bridge-Control-Cursor") == "1")


def test_a_waiting_call_hears_an_order_at_once_from_any_edge(
    make_edge: MakeEdge, sqlite_url: str
) -> None:
    here, there = make_edge(sqlite_url), make_edge(sqlite_url)
    # nobody finds by himself what no wake-up told him of
    here.services.waiting._look_every_s = 300
    worker = here.worker()
    job = here.user().post("/jobs", {"type": "t"}).json
    held = worker.job()
    with ThreadPoolExecutor(1) as pool:
        future = waiting(here, pool, control, worker, 0, 40)
        until(here.services.queue.reservations.client.pubsub_numpat)
        cancelled = there.user().post(f"/jobs/{job['id']}/cancel")
        assert cancelled.json["cancelRequestedAt"] is not None
        orders = future.result(timeout=30)["orders"]
    assert orders[-1] == NONE | {"kind": "cancel", "jobId": job["id"]}
    done = worker.say(job["id"], "cancel/ack", leaseId=held["leaseId"])
    assert done.json["status"] == "cancelled"
    # what has ended is no order any more
    assert control(worker)["orders"] == [RESUME, OWN]


def test_a_worker_that_drains_is_granted_nothing(edge: Edge, user: Caller, worker: Caller) -> None:
    user.post("/jobs", {"type": "t"})
    user.post("/jobs", {"type": "t"})
    held = worker.job()
    with ThreadPoolExecutor(1) as pool:
        user.post("/workers/w1/drain")
        edge.services.presence.renew("w1")
        assert worker.claim().json == {"job": None, "jobs": [], "drain": True}
        beat = worker.say(held["id"], "heartbeat", leaseId=held["leaseId"], leaseSeconds=60)
        assert (beat.json["drain"], beat.headers["Bridge-Control-Cursor"]) == (True, "1")
        # the same when this edge has not heard of it yet: the ledger has
        edge.services.presence._marked.clear()
        edge.services.queue.reservations.client.delete("{db:}:orders")
        assert worker.claim().json["job"] is None
        done = worker.say(
            held["id"], "complete", leaseId=held["leaseId"], claimNext={"leaseSeconds": 60}
        )
        assert (done.json["status"], done.json["next"]["job"]) == ("succeeded", None)
        assert edge.worker("w2").claim().json["job"] is not None
        # its open claim ends when the order changes, so that it reads it
        edge.services.waiting._look_every_s = 300
        future = waiting(edge, pool, lambda: worker.claim(waitSeconds=40).json)
        until(edge.services.queue.reservations.client.pubsub_numpat)
        user.post("/workers/w1/resume")
        assert future.result(timeout=30)["job"] is None
    user.post("/jobs", {"type": "t"})
    until(lambda: worker.claim().json["job"])


def test_a_claim_that_waited_in_vain_names_the_cursor(
    edge: Edge, user: Caller, worker: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = edge.services.waiting
    wait = waiting._wait

    def forget(*args: Any) -> list[Job]:
        found = wait(*args)
        # what an edge knows of a worker it forgets while the worker waits
        edge.services.presence._marked.clear()
        return found

    monkeypatch.setattr(waiting, "_wait", forget)
    user.post("/workers/w1/drain")
    answer = worker.claim(waitSeconds=1)
    assert (answer.json["job"], answer.json["drain"]) == (None, True)
    assert answer.headers["Bridge-Control-Cursor"] == "1"


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_a_paused_queue_is_left_alone_and_others_are_not(edge: Edge, user: Caller) -> None:
    worker = edge.worker(queues=("remote", "other"))
    for queue in ("remote", "other"):
        user.post("/jobs", {"type": queue, "queue": queue, "priority": 5})
        assert worker.job()["queue"] == queue
    for _ in range(2):
        user.post("/jobs", {"type": "t", "priority": 9})
    user.post("/jobs", {"type": "t", "queue": "other"})
    for _ in range(2):
        standing = user.post("/workers/w1/pause", {"queue": "remote"}).json
        assert (standing["pausedQueues"], standing["cursor"]) == (["remote"], 1)
    pause = NONE | {"kind": "pause", "queue": "remote"}
    assert control(worker) == {"cursor": 1, "orders": [RESUME, OWN, pause]}
    # this edge has not heard of it yet: the ledger refuses what is reserved, and it goes back
    edge.services.pauses._known["w1"] = (1, frozenset())
    request = {"worker_id": "w1", "policy": Policy(), "lease_seconds": 60}
    assert edge.services.queue.claim(ClaimRequest(**request)) == []
    edge.services.pauses._known.clear()
    assert worker.job()["queue"] == "other"
    assert worker.claim().json["job"] is None
    # refused by the ledger as well when it comes by the way of those who have a limit
    limited = ClaimRequest(**request | {"policy": Policy(max_concurrency=9)})
    assert edge.services.queue.claim(limited) == []
    assert edge.worker("w2").job()["queue"] == "remote"
    for _ in range(2):
        assert user.post("/workers/w1/unpause", {"queue": "remote"}).json["cursor"] == 2
    edge.services.presence.renew("w1")
    assert worker.job()["queue"] == "remote"
    assert [one["pausedQueues"] for one in user.get("/workers").json["items"]] == [[], []]


def test_a_waiting_claim_obeys_a_pause_and_takes_no_wake_up_from_others(
    make_edge: MakeEdge, sqlite_url: str
) -> None:
    here, there = make_edge(sqlite_url), make_edge(sqlite_url)
    first, second, user = here.worker("w1"), here.worker("w2"), there.user()
    # nobody finds by himself what no wake-up told him of
    here.services.waiting._look_every_s = 300
    with ThreadPoolExecutor(3) as pool:
        open_claim = waiting(here, pool, lambda: first.claim(waitSeconds=40).json)
        until(here.services.queue.reservations.client.pubsub_numpat)
        user.post("/workers/w1/pause", {"queue": "remote"})
        assert open_claim.result(timeout=30)["job"] is None
        # the one who waits longest is passed over: what he may not have is another's at once
        longest = waiting(here, pool, lambda: first.claim(waitSeconds=40).json)
        other = waiting(here, pool, lambda: second.claim(waitSeconds=40).json)
        user.post("/jobs", {"type": "t"})
        assert other.result(timeout=30)["job"] is not None
        assert not longest.done()
        user.post("/jobs", {"type": "t"})
        user.post("/workers/w1/unpause", {"queue": "remote"})
        assert longest.result(timeout=30)["job"] is None
        until(lambda: first.claim().json["job"])


def test_two_pauses_at_once_are_both_kept(edge: Edge, user: Caller) -> None:
    edge.worker("w1")
    names = [f"q{n}" for n in range(8)]
    orders = edge.services.queue.orders
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: orders.pause("w1", name), names))
    assert list(orders.read("w1").paused) == names
    assert user.post("/workers/w1/unpause", {"queue": "q3"}).json["pausedQueues"] == [
        name for name in names if name != "q3"
    ]


def test_orders_to_nobody_are_refused(edge: Edge, user: Caller) -> None:
    before = edge.state()
    for verb in ("drain", "resume"):
        answer = user.post(f"/workers/nobody/{verb}")
        assert (answer.status_code, answer.json["detail"]["code"]) == (
            404, "worker_token_not_found",
        )  # fmt: skip
    for bad in (-1, 10_001, "3", True, 1.5):
        answer = user.post("/workers/nobody/concurrency", {"concurrency": bad})
        assert answer.status_code == 422
    assert edge.state() == before
    for verb in ("pause", "unpause"):
        assert user.post(f"/workers/nobody/{verb}", {"queue": "q"}).status_code == 404
        for bad in (None, "", "a b", 1, "{}"):
            assert user.post(f"/workers/nobody/{verb}", {"queue": bad}).status_code == 422
    assert edge.state() == before
    # a worker with a token can be told before it ever called
    edge.worker("new")
    assert user.post("/workers/new/drain").json["drain"] is True


@pytest.mark.parametrize("query", ["cursor=-1", "cursor=x", "waitSeconds=51", "waitSeconds=x"])
def test_what_makes_no_sense_is_refused(worker: Caller, query: str) -> None:
    assert worker.get(f"/workers/control?{query}").status_code == 422


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_a_checkpoint_reaches_the_next_holder_and_nobody_else(edge: Edge, user: Caller) -> None:
    first, second = edge.worker("w1"), edge.worker("w2")
    job = user.post("/jobs", {"type": "t"}).json
    held = first.job()
    assert held["checkpoint"] is None
    large = first.say(job["id"], "release", leaseId=held["leaseId"], checkpoint="x" * 65536)
    assert large.status_code == 422
    left = {"step": 3, "done": ["a"]}
    for _ in range(2):
        given = first.say(job["id"], "release", leaseId=held["leaseId"], checkpoint=left)
        assert (given.status_code, given.json["status"]) == (200, "queued")
    next_one = second.job()
    assert (next_one["checkpoint"], next_one["attempt"]) == (left, 1)
    assert user.get(f"/jobs/{job['id']}").json["checkpoint"] is None
    # one that has nothing to add leaves what there was
    second.say(job["id"], "release", leaseId=next_one["leaseId"])
    assert first.job()["checkpoint"] == left


def test_progress_is_shown_while_the_lease_lasts(edge: Edge, user: Caller, worker: Caller) -> None:
    job = user.post("/jobs", {"type": "t"}).json
    held = worker.job()
    mine = {"leaseId": held["leaseId"], "leaseSeconds": 60}
    said = {"percent": 40.5, "message": "cloning", "state": "CLONING", "meta": {"of": [1]}}
    beat = worker.say(job["id"], "heartbeat", **mine, progress=said)
    assert beat.status_code == 200
    assert user.get(f"/jobs/{job['id']}").json["progress"] == said
    worker.say(job["id"], "heartbeat", **mine)
    assert user.get("/jobs").json["items"][0]["progress"] == said
    for bad in (
        {"percent": 101}, {"percent": "1"}, {"message": 1}, "half", {"state": "SUCCESS"},
        {"state": "cloning"}, {"meta": []}, {"meta": {"long": "x" * 4096}},
    ):  # fmt: skip
        assert worker.say(job["id"], "heartbeat", **mine, progress=bad).status_code == 422
    worker.say(job["id"], "release", leaseId=held["leaseId"])
    assert user.get(f"/jobs/{job['id']}").json["progress"] is None
    worker.job()
    assert user.get(f"/jobs/{job['id']}").json["progress"] is None
