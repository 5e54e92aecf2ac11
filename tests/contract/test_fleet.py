"""Who is a node, who speaks for it, and what it answers; on real stores."""

from collections.abc import Callable
from typing import Any

import pytest

from broker.bridge import nodes
from broker.bridge.answers import Answers
from broker.bridge.commands import Commands
from broker.bridge.nodes import OWNER, Fleet
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.ledger.fleet import backlog
from broker.orders import OrderBook
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewJob
from broker.reservations.store import Reservations
from tests.contract.conftest import SetClock


class Voice:
    """An announcer that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.fields: dict[str, Any] = {}

    def worker(self, kind: str, node: str, fields: dict[str, Any], *, at: float) -> None:
        assert at > 0
        self.said.append((kind.removeprefix("worker-"), node))
        self.fields = fields


@pytest.fixture
def voice() -> Voice:
    return Voice()


@pytest.fixture
def make_fleet(
    ledger: Ledger, reservations: Reservations, voice: Voice, clock: SetClock
) -> Callable[[str], Fleet]:
    def make(owner: str = "one") -> Fleet:
        return Fleet(
            ledger,
            reservations,
            voice,
            clock=clock,
            suffix="edge",
            token=owner,  # type: ignore[arg-type]
        )

    return make


def run_one(queue: JobQueue, worker_id: str = "w1") -> Job:
    queue.create(NewJob(task_id="3fbb8d6a-51b1-4d5e-9f0f-0a9f6b1d3c11", queue="remote", type="t"))
    request = ClaimRequest(worker_id=worker_id, policy=Policy(), lease_seconds=60)
    (job,) = queue.claim(request)
    return job


def test_a_worker_is_a_node_while_it_is_seen(
    queue: JobQueue, make_fleet: Any, voice: Voice, clock: SetClock
):
    fleet = make_fleet()
    fleet.step()
    assert voice.said == []
    queue.seen("w1")
    fleet.step()
    fleet.step()
    assert voice.said == [("online", "w1@edge")]
    clock.advance(59)
    queue.seen("w2")
    fleet.step()
    assert voice.said[1:] == [("online", "w2@edge")]
    clock.advance(2)
    fleet.step()
    assert voice.said[2:] == [("offline", "w1@edge")]
    fleet.leave()
    assert voice.said[3:] == [("offline", "w2@edge")]
    assert fleet.nodes() == []


def test_heartbeats_say_what_a_node_does(queue: JobQueue, make_fleet: Any, voice: Voice):
    fleet = make_fleet()
    queue.hello("w1", {"version": "9.9", "concurrency": 3, "types": ["t", "u"]})
    job = run_one(queue)
    fleet.step()
    fleet.step()
    assert voice.said == [("online", "w1@edge")]
    fleet._due["w1"] = 0.0
    fleet.step()
    assert voice.said == [("online", "w1@edge"), ("heartbeat", "w1@edge")]
    assert (voice.fields["active"], voice.fields["processed"]) == (1, 0)
    assert voice.fields["sw_ver"] == "9.9"
    queue.complete(job.id, Holder(worker_id="w1", lease_id=job.lease_id))
    fleet._due["w1"] = 0.0
    fleet.step()
    assert (voice.fields["active"], voice.fields["processed"]) == (0, 1)


def test_one_bridge_speaks_for_the_nodes_and_another_takes_over(
    queue: JobQueue, make_fleet: Any, voice: Voice, reservations: Reservations
):
    first, second = make_fleet("one"), make_fleet("two")
    queue.seen("w1")
    first.step()
    second.step()
    assert (first.owned, second.owned) == (True, False)
    assert second.names() == []
    assert voice.said == [("online", "w1@edge")]
    reservations.client.delete(OWNER)  # as when its lease lapses
    second.step()
    first.step()
    assert (first.owned, second.owned) == (False, True)
    first.leave()
    assert voice.said == [("online", "w1@edge"), ("online", "w1@edge")]
    second.leave()
    first.step()
    assert first.owned


def test_a_node_answers_like_a_worker(queue: JobQueue, make_fleet: Any):
    fleet = make_fleet()
    queue.seen("w1")
    queue.hello("w1", {"concurrency": 3, "types": ["u", "t"]})
    job = run_one(queue)
    fleet.step()
    (node,) = fleet.nodes()
    answers = Answers(queues=("remote",), clock=lambda: 7)
    assert answers.to(node, "ping", {}) == {"ok": "pong"}
    assert [one["id"] for one in answers.to(node, "active", {"safe": True})] == [job.task_id]
    assert answers.to(node, "dump_active", {}) == answers.to(node, "active", {})
    assert answers.to(node, "registered", {}) == ["t", "u"]
    assert answers.to(node, "stats", {})["pool"]["max-concurrency"] == 3
    assert [one["name"] for one in answers.to(node, "active_queues", {})] == ["remote"]
    assert answers.to(node, "query_task", {"ids": [job.task_id, "x"]})[job.task_id][0] == "active"
    assert answers.to(node, "query_task", {"ids": "x"}) == {}
    assert answers.to(node, "conf", {"with_defaults": True}) == {
        "concurrency": 3, "types": ["u", "t"],
    }  # fmt: skip
    for method in ("reserved", "scheduled", "revoked"):
        assert answers.to(node, method, {}) == []
    assert "error" in answers.to(node, "pool_grow", {"n": 1})
    assert "ok" in answers.to(node, "enable_events", {})
    assert answers.to(node, "hello", {"from_node": "x"}) is None


def test_the_backlog_counts_queued_jobs_of_one_queue_up_to_a_limit(queue: JobQueue, ledger: Ledger):
    names = ["remote"] * 5 + ["other"]
    ids = [f"3fbb8d6a-51b1-4d5e-9f0f-0a9f6b1d3c1{n}" for n in range(6)]
    queue.ingest([NewJob(task_id=i, queue=q, type="t") for i, q in zip(ids, names, strict=True)])
    queue.cancel(ids[0])
    with ledger.read() as conn:
        assert backlog(conn, "remote", limit=100) == 4
        assert backlog(conn, "remote", limit=3) == 3
        assert backlog(conn, "nowhere", limit=3) == 0


def test_a_large_fleet_is_spoken_of_a_little_at_a_time_and_beats_more_seldom(
    queue: JobQueue, make_fleet: Any, voice: Voice, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nodes, "SPOKEN_MAX", 4)
    monkeypatch.setattr(nodes, "BEATS_PER_S", 0.5)
    names = [f"w{number}" for number in range(10)]
    for name in names:
        queue.seen(name)
    fleet = make_fleet()
    for said in (4, 8, 10, 10):
        fleet.step()
        assert len(voice.said) == said
    assert sorted(voice.said) == [("online", f"{name}@edge") for name in names]
    # ten at one in two seconds; Celery takes a node for dead after twice what it says
    assert voice.fields["freq"] == 20.0
    voice.said.clear()
    fleet._due = dict.fromkeys(fleet._due, 0.0)
    for _ in range(4):
        fleet.step()
    assert sorted(voice.said) == [("heartbeat", f"{name}@edge") for name in names]


def test_consumers_of_a_node_are_those_queues_that_its_tokens_and_orders_leave(
    queue: JobQueue,
    make_fleet: Any,
    ledger: Ledger,
    reservations: Reservations,
    clock: SetClock,
):
    fleet, bridged = make_fleet(), ("a", "b", "c")
    answers = Answers(queues=bridged, clock=lambda: 7)
    commands = Commands(OrderBook(ledger, reservations, clock), queues=bridged)
    tokens = Credentials(ledger)
    for allowed in (("a",), ("b", "elsewhere")):
        tokens.create("worker", worker_id="w1", policy=Policy(queues=allowed), now=clock.now())
    for name in ("w1", "w2"):
        queue.hello(name, {"concurrency": 1})
        queue.seen(name)
    fleet.step()

    def consumes(worker_id: str) -> list[str]:
        [node] = [one for one in fleet.nodes(queues=True) if one.worker_id == worker_id]
        return [one["name"] for one in answers.to(node, "active_queues", {})]

    def order(method: str, name: Any) -> Any:
        [node] = [one for one in fleet.nodes(queues=True) if one.worker_id == "w1"]
        return commands.carry_out(node, method, {"queue": name})

    # of who has no token of ours, nothing is known
    assert (consumes("w1"), consumes("w2")) == (["a", "b"], ["a", "b", "c"])
    for _ in range(2):
        assert order("cancel_consumer", "a") == {"ok": "no longer consuming from a"}
        assert consumes("w1") == ["b"]
    for method in ("cancel_consumer", "add_consumer"):
        assert "does not allow c" in order(method, "c")["error"]
        for nowhere in ("elsewhere", None, 1, ["a"]):
            assert "a, b, c" in order(method, nowhere)["error"]
    assert (consumes("w1"), consumes("w2")) == (["b"], ["a", "b", "c"])
    for _ in range(2):
        assert order("add_consumer", "a") == {"ok": "add consumer a"}
        assert consumes("w1") == ["a", "b"]
    order("shutdown", None)
    assert "workers resume w1" in order("add_consumer", "a")["ok"]
    assert consumes("w1") == []
