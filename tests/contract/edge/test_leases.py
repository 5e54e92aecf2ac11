"""Leases over HTTP: what workers do, and what they are refused."""

from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge

ENDINGS = {
    "heartbeat": {"leaseSeconds": 60},
    "complete": {},
    "fail": {"errorMessage": "it broke"},
    "release": {},
    "cancel/ack": {},
    "events": {"message": "hello"},
}


@pytest.fixture
def held(user: Caller, worker: Caller) -> dict[str, Any]:
    """Give a job that the worker holds."""
    user.post("/jobs", {"type": "t", "payload": {"a": 1}})
    return worker.job()


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["detail"]["code"]


def test_a_daemon_of_the_field_completes_a_job(edge: Edge, user: Caller) -> None:
    token = user.post("/workers/tokens", {"workerId": "old-1"}).json["token"]
    daemon = Caller(edge.app, {"X-MoonMind-Worker-Token": token}, worker_id="old-1")
    assert daemon.claim(leaseSeconds=120).json["job"] is None
    job_id = user.post("/jobs", {"type": "codex_exec"}).json["id"]
    job = daemon.job(leaseSeconds=120, allowedTypes=["codex_exec"], workerCapabilities=["codex"])
    assert (job["id"], job["status"], job["claimedBy"]) == (job_id, "running", "old-1")
    assert daemon.say(job_id, "heartbeat", leaseSeconds=120).status_code == 200
    assert daemon.say(job_id, "events", level="warn", message="half").status_code == 201
    done = daemon.say(job_id, "complete", resultSummary="all good")
    assert done.status_code == 200
    assert (done.json["status"], done.json["resultSummary"]) == ("succeeded", "all good")
    again = daemon.say(job_id, "complete", resultSummary="all good")
    assert refusal(again) == (409, "job_state_conflict")


def test_a_claim_names_the_job_and_its_lease(held: dict[str, Any]) -> None:
    assert held["payload"] == {"a": 1}
    assert held["leaseId"]
    assert (held["attempt"], held["fence"]) == (1, 1)
    assert held["startedAt"]
    assert held["leaseExpiresAt"] > held["startedAt"]


def test_a_claim_takes_several_jobs_by_priority(user: Caller, worker: Caller) -> None:
    for priority in (0, 5, -1, 5):
        user.post("/jobs", {"type": "t", "priority": priority})
    answer = worker.claim(maxJobs=3).json
    assert [job["priority"] for job in answer["jobs"]] == [5, 5, 0]
    assert answer["job"] == answer["jobs"][0]


def test_an_empty_claim_is_no_error(worker: Caller) -> None:
    answer = worker.claim()
    assert (answer.status_code, answer.json) == (200, {"job": None, "jobs": [], "drain": False})


def test_a_repeated_claim_is_answered_alike(user: Caller, worker: Caller) -> None:
    user.post("/jobs", {"type": "t"})
    user.post("/jobs", {"type": "t"})
    key = {"headers": {"idempotency-key": "k1"}}
    body = {"workerId": "w1", "leaseSeconds": 60}
    first = worker.post("/jobs/claim", body, **key).json
    again = worker.post("/jobs/claim", body, **key).json
    assert [job["leaseId"] for job in first["jobs"]] == [job["leaseId"] for job in again["jobs"]]
    other = worker.post("/jobs/claim", body | {"maxJobs": 2}, **key)
    assert refusal(other) == (422, "invalid_queue_payload")


def test_a_token_limits_what_is_claimed(edge: Edge, user: Caller) -> None:
    for kind in ("a", "b"):
        user.post("/jobs", {"type": kind})
    limited = edge.worker("w2", types=("b", "c"))
    assert limited.job()["type"] == "b"
    assert limited.claim(allowedTypes=["c"]).json["job"] is None
    assert refusal(limited.claim(allowedTypes=["a"])) == (403, "worker_not_authorized")
    assert edge.worker("w3", types=()).claim().json["job"] is None
    assert edge.worker("w4", queues=("other",)).claim().json["job"] is None
    assert edge.worker("w5", repositories=("org/*",)).claim().json["job"] is None
    assert edge.worker("w6", max_concurrency=1).job()["type"] == "a"


def test_capabilities_come_from_the_token_or_the_claim(edge: Edge, user: Caller) -> None:
    user.post("/jobs", {"type": "t", "payload": {"requiredCapabilities": ["gpu"]}})
    bare = edge.worker("w1")
    assert bare.claim(workerCapabilities=["cpu"]).json["job"] is None
    fixed = edge.worker("w2", capabilities=("cpu",))
    assert fixed.claim(workerCapabilities=["gpu"]).json["job"] is None
    assert bare.claim(workerCapabilities=["gpu", "cpu"]).json["job"] is not None


def test_a_heartbeat_moves_the_end_of_the_lease(worker: Caller, held: dict[str, Any]) -> None:
    beat = worker.say(held["id"], "heartbeat", leaseSeconds=600, leaseId=held["leaseId"]).json
    assert beat["leaseExpiresAt"] > held["leaseExpiresAt"]
    assert beat["expiresIn"] == 600
    assert beat["drain"] is False
    assert beat["leaseId"] == held["leaseId"]


def test_a_result_is_kept(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    result = {"patch": None, "files": ["a"], "seconds": 1.5}
    body = {"result": result, "resultSummary": "ok", "leaseId": held["leaseId"]}
    done = worker.say(held["id"], "complete", **body)
    assert done.json["result"] == result
    assert worker.say(held["id"], "complete", **body).json == done.json
    assert user.get(f"/jobs/{held['id']}").json["result"] == result
    other = worker.say(held["id"], "complete", **body | {"result": 1})
    assert refusal(other) == (409, "job_state_conflict")


def test_a_result_has_a_limit(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    before = edge.state()
    answer = worker.say(held["id"], "complete", result="x" * (256 * 1024))
    assert refusal(answer) == (422, "invalid_queue_payload")
    answer = worker.say(held["id"], "complete", result="x" * (1024 * 1024))
    assert refusal(answer) == (413, "too_large")
    assert edge.state() == before
    assert worker.say(held["id"], "complete", result="x" * (256 * 1024 - 2)).status_code == 200


def test_a_failure_is_final_or_not(user: Caller, worker: Caller) -> None:
    for _ in range(3):
        user.post("/jobs", {"type": "t", "maxAttempts": 2})
    final = worker.say(
        worker.job()["id"], "fail", errorMessage="no", errorType="builtins.ValueError"
    )
    assert (final.json["status"], final.json["errorMessage"]) == ("failed", "no")
    assert final.json["errorType"] == "builtins.ValueError"
    again = worker.say(worker.job()["id"], "fail", errorMessage="not yet", retryable=True).json
    assert (again["status"], again["attempt"]) == ("queued", 2)
    assert again["nextAttemptAt"]
    soon = worker.job()["id"]
    soon = worker.say(soon, "fail", errorMessage="!", retryable=True, retryAfterSeconds=0).json
    last = worker.job()
    assert (last["id"], last["attempt"]) == (soon["id"], 2)
    dead = worker.say(last["id"], "fail", errorMessage="no more", retryable=True).json
    assert dead["status"] == "dead_letter"


def test_a_released_job_costs_no_attempt(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    given = worker.say(held["id"], "release", reason="drain", leaseId=held["leaseId"]).json
    assert (given["status"], given["attempt"], given["claimedBy"]) == ("queued", 1, None)
    assert edge.worker("w2").job()["fence"] == 2
    # said twice, it is answered alike, but the new lease is not the old holder's to know
    again = worker.say(held["id"], "release", reason="drain", leaseId=held["leaseId"])
    assert (again.status_code, again.json["claimedBy"], again.json["leaseId"]) == (200, "w2", None)


def test_only_a_cancelled_job_is_acknowledged(worker: Caller, held: dict[str, Any]) -> None:
    assert refusal(worker.say(held["id"], "cancel/ack")) == (409, "job_state_conflict")


@pytest.mark.parametrize("what", ENDINGS)
def test_nobody_touches_the_job_of_another(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any], what: str
) -> None:
    other = edge.worker("w2")
    edge.services.queue.seen("w2")
    before = edge.state()
    lease = {"leaseId": held["leaseId"]}
    for stolen in ({}, lease):
        answer = other.say(held["id"], what, **ENDINGS[what], **stolen)
        assert refusal(answer) == (409, "job_ownership_mismatch")
    # under the holder's name, but with one's own token
    answer = other.post(f"/jobs/{held['id']}/{what}", {"workerId": "w1", **ENDINGS[what]})
    assert refusal(answer) == (403, "worker_not_authorized")
    assert edge.state() == before


@pytest.mark.parametrize("what", ENDINGS)
def test_an_old_lease_ends_nothing(
    edge: Edge, worker: Caller, held: dict[str, Any], what: str
) -> None:
    worker.say(held["id"], "fail", errorMessage="x", retryable=True, retryAfterSeconds=0)
    assert worker.job()["fence"] == 2
    before = edge.state()
    answer = worker.say(held["id"], what, leaseId=held["leaseId"], **ENDINGS[what])
    assert refusal(answer) == (409, "lease_lost")
    assert edge.state() == before


@pytest.mark.parametrize("what", ENDINGS)
def test_a_job_that_does_not_run_is_a_conflict(
    edge: Edge, user: Caller, worker: Caller, what: str
) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    before = edge.state()
    answer = worker.say(job_id, what, **ENDINGS[what])
    assert refusal(answer) == (409, "job_state_conflict")
    assert edge.state() == before


@pytest.mark.parametrize("what", ENDINGS)
def test_the_order_of_checks(edge: Edge, user: Caller, worker: Caller, what: str) -> None:
    user.post("/jobs", {"type": "t"})
    other = edge.worker("w2")
    held_by_other = other.job()["id"]
    nobody = "00000000-0000-4000-8000-000000000000"
    wrong = {"leaseSeconds": 0, "errorMessage": " ", "leaseId": "?"}
    path = f"/jobs/{held_by_other}/{what}"

    before_body = edge.stranger().post(path, data=b"{", content_type="application/json")
    assert refusal(before_body) == (401, "worker_auth_failed")
    unread = worker.post(path, data=b"{", content_type="application/json")
    assert refusal(unread) == (400, "malformed_json")
    name = worker.post(path, {"workerId": "w2", **wrong})
    assert refusal(name) == (403, "worker_not_authorized")
    sense = worker.say(nobody, what, **wrong)
    assert refusal(sense) == (422, "invalid_queue_payload")
    missing = worker.say(nobody, what, **ENDINGS[what])
    assert refusal(missing) == (404, "job_not_found")
    owner = worker.say(held_by_other, what, **ENDINGS[what])
    assert refusal(owner) == (409, "job_ownership_mismatch")
    other.say(held_by_other, "complete")
    state = worker.say(held_by_other, what, **ENDINGS[what])
    assert refusal(state) == (409, "job_state_conflict")
