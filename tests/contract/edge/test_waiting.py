"""Claims that wait, on real stores: woken by a create, one at a time."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from broker.records import ClaimRequest
from tests.contract.edge.conftest import Caller, Edge, MakeEdge
from tests.processes import until

LONG_S = 50
#: below LONG_S, and every look of its own that a waiter might make
WOKEN_S = 25


class Counting:
    """Counts claims by worker, on their way to the queue."""

    def __init__(self, edge: Edge) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self._claim = edge.services.queue.claim

    def __call__(self, request: ClaimRequest) -> list[Any]:
        with self.lock:
            self.calls[request.worker_id] += 1
        return self._claim(request)


@pytest.fixture
def counting(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Count the claims of an edge whose waiters do not look by themselves."""
    counting = Counting(edge)
    monkeypatch.setattr(edge.services.queue, "claim", counting)
    monkeypatch.setattr(edge.services.waiting, "_look_every_s", 600.0)
    return counting


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Give threads to wait on."""
    with ThreadPoolExecutor(32) as made:
        yield made


def park(edge: Edge, pool: ThreadPoolExecutor, name: str, **wish: Any) -> Future[Any]:
    """Start a claim that waits, and return once it does and Redis knows who listens."""
    before = len(edge.services.waiting)
    worker = edge.worker(name)
    claim = pool.submit(lambda: worker.claim(waitSeconds=LONG_S, **wish).json["job"])
    until(lambda: len(edge.services.waiting) > before)
    until(edge.services.queue.reservations.client.pubsub_numpat)
    return claim


def test_a_create_wakes_a_waiting_claim(
    edge: Edge, counting: Counting, user: Caller, pool: ThreadPoolExecutor
) -> None:
    waiting = park(edge, pool, "w1")
    job = user.post("/jobs", {"type": "t"}).json
    assert waiting.result(WOKEN_S)["id"] == job["id"]
    # before it waited, once it had its place, and when it was woken
    assert counting.calls == {"w1": 3}


def test_one_job_wakes_one_of_many(
    edge: Edge, counting: Counting, user: Caller, pool: ThreadPoolExecutor
) -> None:
    waiting = [park(edge, pool, f"w{n:02}") for n in range(20)]
    until(lambda: sum(counting.calls.values()) == 40)
    user.post("/jobs", {"type": "t"})
    until(lambda: any(claim.done() for claim in waiting))
    assert waiting[0].result(WOKEN_S) is not None
    assert sum(counting.calls.values()) == 41
    for _ in range(19):
        user.post("/jobs", {"type": "t"})
    assert all(claim.result(WOKEN_S) for claim in waiting)
    assert sum(counting.calls.values()) == 60


def test_the_right_one_is_woken(
    edge: Edge, counting: Counting, user: Caller, pool: ThreadPoolExecutor
) -> None:
    other = park(edge, pool, "w1", allowedTypes=["other"])
    right = park(edge, pool, "w2", allowedTypes=["t"])
    user.post("/jobs", {"type": "t"})
    assert right.result(WOKEN_S)["type"] == "t"
    assert counting.calls["w1"] == 2
    assert not other.done()
    edge.services.waiting.stop()
    assert other.result(WOKEN_S) is None


def test_a_waiter_of_another_edge_is_woken(
    edge: Edge,
    counting: Counting,
    make_edge: MakeEdge,
    sqlite_url: str,
    pool: ThreadPoolExecutor,
) -> None:
    waiting = park(edge, pool, "w1")
    elsewhere = make_edge(sqlite_url).user()
    job = elsewhere.post("/jobs", {"type": "t"}).json
    assert waiting.result(WOKEN_S)["id"] == job["id"]


def test_a_released_job_wakes_the_next(
    edge: Edge, counting: Counting, user: Caller, worker: Caller, pool: ThreadPoolExecutor
) -> None:
    user.post("/jobs", {"type": "t"})
    held = worker.job()
    waiting = park(edge, pool, "w2")
    worker.say(held["id"], "release")
    assert waiting.result(WOKEN_S)["id"] == held["id"]


def test_a_waiter_looks_by_itself_when_nobody_told_it(
    edge: Edge,
    user: Caller,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge.services.waiting, "_look_every_s", 0.05)
    monkeypatch.setattr(edge.services.waiting._line, "rouse", lambda *_args: None)
    waiting = park(edge, pool, "w1")
    job = user.post("/jobs", {"type": "t"}).json
    assert waiting.result(WOKEN_S)["id"] == job["id"]


def test_a_waiting_worker_is_seen(
    edge: Edge, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.services.waiting, "_look_every_s", 0.05)
    waiting = park(edge, pool, "w1")
    client = edge.services.queue.reservations.client
    edge.services.presence._marked.clear()
    client.delete("{db:}:seen")
    until(lambda: client.zscore("{db:}:seen", "w1"))
    edge.services.waiting.stop()
    assert waiting.result(WOKEN_S) is None


def test_no_place_to_wait_is_said_with_the_moment_to_come_back(
    make_edge: MakeEdge, sqlite_url: str, pool: ThreadPoolExecutor
) -> None:
    edge = make_edge(sqlite_url, threads=1)
    waiting = park(edge, pool, "w1")
    refused = edge.worker("w2").claim(waitSeconds=LONG_S)
    assert (refused.status_code, refused.json["detail"]["code"]) == (503, "unavailable")
    assert 1 <= int(refused.headers["Retry-After"]) <= 5
    assert edge.worker("w3").claim().json == {"job": None, "jobs": [], "drain": False}
    edge.user().post("/jobs", {"type": "t"})
    assert waiting.result(WOKEN_S) is not None


def test_a_reader_waits_for_the_log(
    edge: Edge, user: Caller, worker: Caller, pool: ThreadPoolExecutor
) -> None:
    user.post("/jobs", {"type": "t"})
    job_id = worker.job()["id"]
    reader = edge.user()
    path = f"/jobs/{job_id}/events?after=2&waitSeconds={LONG_S}"
    reading = pool.submit(lambda: reader.get(path).json)
    until(lambda: len(edge.services.waiting) == 1)
    worker.say(job_id, "events", message="news")
    assert [entry["message"] for entry in reading.result(WOKEN_S)["items"]] == ["news"]
