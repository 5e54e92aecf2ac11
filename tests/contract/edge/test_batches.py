"""Complete and claim in one call, and several completes in one call."""

from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge

NOBODY = "00000000-0000-4000-8000-000000000000"
NEXT = {"leaseSeconds": 60}


def make(user: Caller, n: int, **values: Any) -> list[str]:
    """Queue some jobs."""
    return [user.post("/jobs", {"type": "t", **values}).json["id"] for _ in range(n)]


def many(worker: Caller, jobs: list[dict[str, Any]], **more: Any) -> Any:
    """Complete some jobs by one call."""
    items = [{"jobId": job["id"], "leaseId": job["leaseId"], "result": 1} for job in jobs]
    return worker.post("/jobs/complete", {"workerId": "w1", "items": items, **more})


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_a_complete_brings_the_next_job(user: Caller, worker: Caller) -> None:
    ids = make(user, 2)
    job = worker.job()
    lease = {"leaseId": job["leaseId"]}
    answer = worker.say(ids[0], "complete", **lease, result=1, claimNext=NEXT)
    assert (answer.status_code, answer.json["status"]) == (200, "succeeded")
    granted = answer.json["next"]
    assert granted["job"]["id"] == ids[1]
    assert granted["jobs"] == [granted["job"]]
    assert granted["job"]["leaseId"]
    # nobody else has a job now, and the reply that was lost comes again
    assert worker.claim().json["job"] is None
    assert worker.say(ids[0], "complete", **lease, result=1, claimNext=NEXT).json == answer.json
    lease = {"leaseId": granted["job"]["leaseId"]}
    last = worker.say(ids[1], "complete", **lease, claimNext=NEXT).json
    assert last["next"] == {"job": None, "jobs": [], "drain": False}
    assert user.get(f"/jobs/{ids[1]}").json.items() <= last.items()


def test_a_key_of_the_callers_is_the_claims(user: Caller, worker: Caller) -> None:
    ids = make(user, 3)
    headers = {"Idempotency-Key": "mine"}
    worker.job()
    body = {"workerId": "w1", "claimNext": {**NEXT, "maxJobs": 2}}
    first = worker.post(f"/jobs/{ids[0]}/complete", body, headers=headers)
    assert [job["id"] for job in first.json["next"]["jobs"]] == ids[1:]
    replay = worker.post(
        "/jobs/claim", {"workerId": "w1", "leaseSeconds": 60, "maxJobs": 2}, headers=headers
    )
    assert replay.json == first.json["next"]


def test_without_claim_next_there_is_none(user: Caller, worker: Caller) -> None:
    ids = make(user, 2)
    worker.job()
    assert worker.say(ids[0], "complete").json["next"] is None
    assert user.get(f"/jobs/{ids[1]}").json["status"] == "queued"


def test_a_claim_that_may_see_nothing_is_refused_before_anything_ends(edge: Edge) -> None:
    [job_id] = make(edge.user(), 1)
    worker = edge.worker(types=("t",))
    worker.job()
    before = edge.state()
    bad = {**NEXT, "allowedTypes": ["other"]}
    answer = worker.say(job_id, "complete", claimNext=bad)
    assert (answer.status_code, answer.json["detail"]["code"]) == (403, "worker_not_authorized")
    assert edge.state() == before


def test_a_complete_that_is_refused_claims_nothing(user: Caller, worker: Caller) -> None:
    make(user, 1)
    assert worker.say(NOBODY, "complete", claimNext=NEXT).status_code == 404
    assert worker.claim().json["job"] is not None


def test_a_key_used_for_another_claim_spoils_no_complete(user: Caller, worker: Caller) -> None:
    make(user, 3)
    headers = {"Idempotency-Key": "used"}
    body = {"workerId": "w1", "leaseSeconds": 60}
    job = worker.post("/jobs/claim", body, headers=headers).json["job"]
    answer = worker.post(
        f"/jobs/{job['id']}/complete",
        {"workerId": "w1", "claimNext": {"leaseSeconds": 30}},
        headers=headers,
    )
    assert (answer.status_code, answer.json["status"]) == (200, "succeeded")
    assert answer.json["next"] is None


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_several_jobs_are_completed_at_once(edge: Edge, user: Caller, worker: Caller) -> None:
    ids = make(user, 4)
    jobs = worker.claim(maxJobs=2).json["jobs"]
    [foreign] = edge.worker("w2").claim().json["jobs"]
    absent = {"id": NOBODY, "leaseId": "x"}
    answer = many(worker, [*jobs, foreign, absent], claimNext=NEXT)
    assert answer.status_code == 200
    items = answer.json["items"]
    assert [(one["jobId"], one["status"]) for one in items] == [
        (ids[0], 200), (ids[1], 200), (ids[2], 409), (NOBODY, 404),
    ]  # fmt: skip
    assert [one["detail"] and one["detail"]["code"] for one in items] == [
        None, None, "job_ownership_mismatch", "job_not_found",
    ]  # fmt: skip
    assert [one["job"] for one in items[:2]] == [user.get(f"/jobs/{one}").json for one in ids[:2]]
    assert items[2]["job"] is None
    assert answer.json["next"]["job"]["id"] == ids[3]
    assert many(worker, [*jobs, foreign, absent], claimNext=NEXT).json == answer.json
    assert user.get(f"/jobs/{ids[2]}").json["status"] == "running"


@pytest.mark.parametrize(
    "more",
    [{"items": []}, {"items": None}, {"items": [{}]}, {"items": [{"jobId": NOBODY}] * 2},
     {"items": [{"jobId": f"x{n}"} for n in range(101)]}, {"claimNext": {}},
     {"claimNext": {"leaseSeconds": 0}}, {"items": [{"jobId": "x", "leaseId": "%"}]},
     {"items": [{"jobId": "x", "result": "x" * 262_145}]}],
)  # fmt: skip
def test_a_batch_refuses_what_makes_no_sense(
    edge: Edge, user: Caller, worker: Caller, more: dict[str, Any]
) -> None:
    make(user, 1)
    job = worker.job()
    before = edge.state()
    answer = many(worker, [job], **more)
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")
    assert edge.state() == before


def test_a_worker_completes_as_nobody_else(edge: Edge, user: Caller) -> None:
    make(user, 1)
    job = edge.worker("w1").job()
    answer = many(edge.worker("w2"), [job])
    assert (answer.status_code, answer.json["detail"]["code"]) == (403, "worker_not_authorized")
