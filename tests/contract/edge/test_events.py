"""A job's log over HTTP."""

import json
from typing import Any

import pytest

from broker.ledger import log_caps
from tests.contract.edge.conftest import Caller, Edge, MakeEdge


@pytest.fixture
def held(user: Caller, worker: Caller) -> dict[str, Any]:
    """Give a job that the worker holds."""
    user.post("/jobs", {"type": "t"})
    return worker.job()


def test_an_entry_is_appended(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    made = worker.say(held["id"], "events", level="warn", message="x", payload={"a": 1})
    assert made.status_code == 201
    assert (made.json["level"], made.json["message"], made.json["payload"]) == (
        "warn",
        "x",
        {"a": 1},
    )
    assert (made.json["attempt"], made.json["fence"]) == (1, 1)
    log = user.get(f"/jobs/{held['id']}/events").json
    assert [entry["message"] for entry in log["items"]] == ["Job queued", "Job claimed", "x"]
    assert log["items"][-1] == made.json
    assert log["cursor"] == made.json["seq"]


def test_a_repeated_batch_adds_nothing(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    batch = [{"message": str(n), "workerSeq": n} for n in range(100)]
    first = worker.say(held["id"], "events", events=batch)
    again = worker.say(held["id"], "events", events=[*batch[50:], {"message": "new"}])
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json["items"][:50] == first.json["items"][50:]
    messages = [e["message"] for e in user.get(f"/jobs/{held['id']}/events").json["items"]]
    assert messages[2:] == [*map(str, range(100)), "new"]


def test_a_log_is_read_from_a_place_on(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    path = f"/jobs/{held['id']}/events"
    entry = worker.say(held["id"], "events", message="x").json
    worker.say(held["id"], "events", message="y")
    assert [e["message"] for e in user.get(f"{path}?after={entry['seq']}").json["items"]] == ["y"]
    for moment in (entry["createdAt"], entry["createdAt"].replace("Z", "+00:00")):
        assert [e["message"] for e in user.get(f"{path}?after={moment}").json["items"]] == ["y"]
    page = user.get(f"{path}?limit=1").json
    assert ([e["seq"] for e in page["items"]], page["cursor"]) == ([1], 1)


def test_a_cursor_never_goes_back(user: Caller, held: dict[str, Any]) -> None:
    path = f"/jobs/{held['id']}/events"
    assert user.get(f"{path}?after=2").json == {"items": [], "cursor": 2}
    assert user.get(f"{path}?after=2099-01-01T00:00:00Z").json == {"items": [], "cursor": None}


def test_a_reader_may_wait(user: Caller, held: dict[str, Any]) -> None:
    path = f"/jobs/{held['id']}/events"
    assert user.get(f"{path}?waitSeconds=50").json["cursor"] == 2
    assert user.get(f"{path}?after=2&waitSeconds=0.01").json == {"items": [], "cursor": 2}


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=-1", "after=1.5", "after=2026-13-01", "limit=0", "limit=501", "limit=",
     "waitSeconds=51", "waitSeconds=-1", "waitSeconds=nan", "after=" + "9" * 30, "after=%00"],
)  # fmt: skip
def test_a_log_refuses_places_that_make_no_sense(
    user: Caller, held: dict[str, Any], query: str
) -> None:
    answer = user.get(f"/jobs/{held['id']}/events?{query}")
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")


def test_text_comes_back_as_it_was_sent(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    text = '<script>alert(1)</script>\r\n\x1b[31mred\u202e{"level": "error"}'
    worker.say(held["id"], "events", message=text)
    assert user.get(f"/jobs/{held['id']}/events").json["items"][-1]["message"] == text


def test_a_batch_has_a_limit(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    before = edge.state()
    many = worker.say(held["id"], "events", events=[{"message": "x"}] * 101)
    assert (many.status_code, many.json["detail"]["code"]) == (422, "invalid_queue_payload")
    large = worker.say(held["id"], "events", message="x" * 1024 * 1024)
    assert (large.status_code, large.json["detail"]["code"]) == (413, "too_large")
    assert edge.state() == before


def test_what_is_too_large_is_cut_and_marked(worker: Caller, held: dict[str, Any]) -> None:
    long, large = "é" * (log_caps.MESSAGE_MAX + 7), {"text": "x" * log_caps.PAYLOAD_MAX}
    made = worker.say(held["id"], "events", message=long, payload=large, workerSeq=1)
    assert made.status_code == 201
    assert made.json["message"] == "é" * log_caps.MESSAGE_MAX + "… [cut: 7 characters left out]"
    assert made.json["payload"] == {"truncated": True, "sizeBytes": len(json.dumps(large))}
    assert worker.say(held["id"], "events", message=long, workerSeq=1).json == made.json
    whole = "y" * log_caps.MESSAGE_MAX
    assert worker.say(held["id"], "events", message=whole).json["message"] == whole


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_ledger_url"])
def test_a_log_that_is_full_says_so(
    request: pytest.FixtureRequest, make_edge: MakeEdge, url: str
) -> None:
    edge = make_edge(request.getfixturevalue(url), queue={"events_per_job": 5})
    user, worker = edge.user(), edge.worker()
    user.post("/jobs", {"type": "t"})
    job = worker.job()
    first = [{"message": str(n), "workerSeq": n} for n in range(3)]
    assert worker.say(job["id"], "events", events=first).status_code == 201
    for _ in range(2):
        refused = worker.say(job["id"], "events", events=[{"message": "one more", "workerSeq": 9}])
        assert (refused.status_code, refused.json["detail"]["code"]) == (413, "too_large")
    # a repeat of what is there needs no room
    assert worker.say(job["id"], "events", events=first).status_code == 201
    assert worker.say(job["id"], "complete").status_code == 200
    log = user.get(f"/jobs/{job['id']}/events").json["items"]
    assert [one["message"] for one in log] == [
        "Job queued", "Job claimed", "0", "1", "2", "Log full", "Job completed",
    ]  # fmt: skip
    assert log[5]["payload"] == {"limit": 5}
