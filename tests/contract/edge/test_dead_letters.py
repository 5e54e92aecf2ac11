"""Bringing back what failed for good, over HTTP."""

from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge

NOBODY = "00000000-0000-4000-8000-000000000000"
PATH = "/dead-letters/redrive"


def dead(user: Caller, worker: Caller, **values: Any) -> str:
    """Make a dead letter."""
    job_id: str = user.post("/jobs", {"type": "t", "maxAttempts": 1, **values}).json["id"]
    worker.job()
    answer = worker.say(job_id, "fail", errorMessage="broken", retryable=True)
    assert answer.json["status"] == "dead_letter"
    return job_id


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_dead_letters_are_brought_back_by_id(user: Caller, worker: Caller) -> None:
    job_id = dead(user, worker)
    asked = {"ids": [job_id, NOBODY]}
    dry = user.post(PATH, asked | {"dryRun": True}).json
    assert (dry["matched"], dry["redriven"]) == (1, 0)
    assert user.get(f"/jobs/{job_id}").json["status"] == "dead_letter"
    done = user.post(PATH, asked)
    assert done.status_code == 200
    assert done.json == {
        "matched": 1, "redriven": 1, "more": False,
        "items": [
            {"id": job_id, "outcome": "redriven", "status": "queued", "nextAttemptAt": None},
            {"id": NOBODY, "outcome": "not_found", "status": None, "nextAttemptAt": None},
        ],
    }  # fmt: skip
    again = user.post(PATH, asked).json
    assert (again["matched"], again["redriven"]) == (0, 0)
    assert worker.job()["id"] == job_id
    assert [one["run"] for one in user.get(f"/jobs/{job_id}/attempts").json["items"]] == [1, 2]


def test_dead_letters_are_brought_back_by_filter_at_a_rate(user: Caller, worker: Caller) -> None:
    ids = [dead(user, worker) for _ in range(3)]
    dead(user, worker, queue="other")
    asked = {"filter": {"status": "any", "type": "t", "queue": "remote", "limit": 2}, "maxRate": 5}
    done = user.post(PATH, asked).json
    assert [one["id"] for one in done["items"]] == ids[:2]
    assert [one["nextAttemptAt"] is None for one in done["items"]] == [True, False]
    assert done["more"] is True
    late = user.post(PATH, {"filter": {"since": "2999-01-01T00:00:00Z"}}).json
    assert late == {"matched": 0, "redriven": 0, "more": False, "items": []}


@pytest.mark.parametrize(
    "body",
    [{}, {"ids": None}, {"ids": []}, {"ids": ["x"]}, {"ids": [NOBODY], "filter": {}},
     {"ids": [NOBODY] * 1001}, {"filter": {"status": "queued"}}, {"filter": {"limit": 0}},
     {"filter": {"since": "soon"}}, {"filter": {}, "maxRate": 0}, {"filter": {}, "maxRate": "1"},
     {"filter": {}, "dryRun": "no"}, {"filter": []}],
)  # fmt: skip
def test_a_redrive_refuses_what_makes_no_sense(
    edge: Edge, user: Caller, worker: Caller, body: dict[str, Any]
) -> None:
    dead(user, worker)
    before = edge.state()
    answer = user.post(PATH, body)
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")
    assert edge.state() == before
