"""Jobs over HTTP as producers and operators see them."""

import pytest

from tests.contract.edge.conftest import Caller, Edge

NOBODY = "00000000-0000-4000-8000-000000000000"


def test_a_job_is_queued_with_the_defaults_of_the_contract(user: Caller) -> None:
    answer = user.post("/jobs", {"type": "  codex_exec "})
    assert answer.status_code == 201
    job = answer.json
    assert job["type"] == "codex_exec"
    assert job["status"] == "queued"
    assert (job["priority"], job["payload"], job["attempt"], job["maxAttempts"]) == (0, {}, 1, 3)
    assert job["queue"] == "remote"
    assert job["artifactsPath"] == f"jobs/{job['id']}/artifacts"
    assert job["createdByUserId"] == job["requestedByUserId"]
    unset = {
        "affinityKey", "claimedBy", "leaseExpiresAt", "nextAttemptAt", "resultSummary",
        "errorMessage", "startedAt", "finishedAt", "cancelRequestedAt", "cancelReason",
        "leaseId", "result", "errorType", "checkpoint", "progress", "timeLimitSeconds",
        "softTimeLimitSeconds",
    }  # fmt: skip
    assert {name for name, value in job.items() if value is None} == unset


def test_a_job_keeps_what_it_was_made_with(user: Caller) -> None:
    body = {
        "type": "t", "priority": -(2**31), "payload": {"a": [1, {"b": "ü"}]}, "affinityKey": "k",
        "maxAttempts": 100, "queue": "other", "status": "succeeded", "fence": 9, "id": NOBODY,
    }  # fmt: skip
    job = user.post("/jobs", body).json
    assert job["payload"] == body["payload"]
    assert (job["priority"], job["affinityKey"], job["maxAttempts"]) == (-(2**31), "k", 100)
    assert job["queue"] == "other"
    # nobody binds what only we may say
    assert (job["status"], job["fence"]) == ("queued", 0)
    assert job["id"] != NOBODY
    assert user.get(f"/jobs/{job['id']}").json == job


def test_the_same_idempotency_key_gives_the_same_job(edge: Edge, user: Caller) -> None:
    body = {"type": "t", "idempotencyKey": "once"}
    first = user.post("/jobs", body)
    again = user.post("/jobs", body)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json == again.json
    assert edge.user().post("/jobs", body).json["id"] != first.json["id"]
    other = user.post("/jobs", body | {"priority": 1})
    assert (other.status_code, other.json["detail"]["code"]) == (422, "invalid_queue_payload")


def test_jobs_are_listed_newest_first_page_by_page(user: Caller) -> None:
    made = [user.post("/jobs", {"type": "t"}).json["id"] for _ in range(5)]
    page = user.get("/jobs?limit=2").json
    seen = [job["id"] for job in page["items"]]
    while page["nextCursor"] is not None:
        page = user.get("/jobs", query_string={"limit": 2, "cursor": page["nextCursor"]}).json
        seen += [job["id"] for job in page["items"]]
    assert seen == made[::-1]


def test_a_cursor_works_as_it_stands_in_a_url(user: Caller) -> None:
    for _ in range(3):
        user.post("/jobs", {"type": "t"})
    cursor = user.get("/jobs?limit=1").json["nextCursor"]
    assert user.get(f"/jobs?limit=1&cursor={cursor}").status_code == 200


def test_jobs_are_listed_by_what_they_are(user: Caller, worker: Caller) -> None:
    held = user.post("/jobs", {"type": "a"}).json["id"]
    user.post("/jobs", {"type": "b", "queue": "other"})
    assert worker.job(allowedTypes=["a"])["id"] == held

    def ids(query: str) -> list[str]:
        return [job["type"] for job in user.get(f"/jobs?{query}").json["items"]]

    assert ids("status=running") == ["a"]
    assert ids("type=b") == ["b"]
    assert ids("queue=other") == ["b"]
    assert ids("worker=w1") == ["a"]
    assert ids("status=dead_letter") == []


def test_a_wrong_status_has_a_code_of_its_own(user: Caller) -> None:
    answer = user.get("/jobs?status=done")
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_status_filter")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=1.5", "limit=x", "limit=1e9", "limit=%00",
     "limit=" + "9" * 400, "cursor=x", "cursor=~", "cursor=%00", "type=%00", "queue=a%0ab"],
)  # fmt: skip
def test_a_listing_refuses_what_makes_no_sense(user: Caller, query: str) -> None:
    answer = user.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")


@pytest.mark.parametrize(
    "name", [NOBODY, "x", "0", "%00", "..%2f..", "%2e%2e", ";", NOBODY.upper(), NOBODY + "%0a"]
)
def test_what_is_no_job_is_not_found(edge: Edge, user: Caller, worker: Caller, name: str) -> None:
    for answer in (
        user.get(f"/jobs/{name}"),
        user.get(f"/jobs/{name}/attempts"),
        user.get(f"/jobs/{name}/events"),
        user.get(f"/jobs/{name}/artifacts"),
        user.post(f"/jobs/{name}/cancel"),
        worker.say(name, "heartbeat", leaseSeconds=60),
        worker.say(name, "complete"),
    ):
        assert answer.status_code == 404
        # "..%2f.." has one slash too many to be an id at all
        assert answer.json["detail"]["code"] in {"job_not_found", "not_found"}


def test_users_never_see_a_lease_id(user: Caller, worker: Caller) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    assert worker.job()["leaseId"]
    assert user.get(f"/jobs/{job_id}").json["leaseId"] is None
    assert user.get("/jobs").json["items"][0]["leaseId"] is None
    assert user.post(f"/jobs/{job_id}/cancel").json["leaseId"] is None


def test_a_worker_sees_what_it_holds_and_nothing_else(
    edge: Edge, user: Caller, worker: Caller
) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    foreign = worker.get(f"/jobs/{job_id}")
    absent = worker.get(f"/jobs/{NOBODY}")
    assert (foreign.status_code, absent.status_code) == (404, 404)
    assert foreign.data == absent.data
    held = worker.job()
    assert worker.get(f"/jobs/{job_id}").json == held
    assert edge.worker("w2").get(f"/jobs/{job_id}").data == absent.data
    worker.say(job_id, "complete")
    assert worker.get(f"/jobs/{job_id}").status_code == 404


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_every_lease_of_a_job_is_told_with_how_it_ended(edge: Edge, user: Caller) -> None:
    job_id = user.post("/jobs", {"type": "t", "maxAttempts": 5}).json["id"]
    assert user.get(f"/jobs/{job_id}/attempts").json == {"items": []}
    one, two = edge.worker("w1"), edge.worker("w2")
    one.job()
    one.say(job_id, "release")
    two.job()
    two.say(job_id, "fail", errorMessage="no room", retryable=True, retryAfterSeconds=0)
    one.job()
    told = user.get(f"/jobs/{job_id}/attempts").json["items"]
    assert [
        (one["workerId"], one["fence"], one["attempt"], one["outcome"], one["errorMessage"])
        for one in told
    ] == [
        ("w1", 1, 1, "released", None),
        ("w2", 2, 1, "failed", "no room"),
        ("w1", 3, 2, None, None),
    ]
    assert [one["endedAt"] is None for one in told] == [False, False, True]
    assert "leaseId" not in told[2]


def test_a_queued_job_is_cancelled_at_once(user: Caller, worker: Caller) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    job = user.post(f"/jobs/{job_id}/cancel", {"reason": "no longer needed"}).json
    assert (job["status"], job["cancelReason"]) == ("cancelled", "no longer needed")
    assert user.post(f"/jobs/{job_id}/cancel").json == job
    assert worker.claim().json == {"job": None, "jobs": [], "drain": False}


def test_a_running_job_is_asked_to_stop(user: Caller, worker: Caller) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    worker.job()
    job = user.post(f"/jobs/{job_id}/cancel", {}).json
    assert job["status"] == "running"
    assert job["cancelRequestedAt"]
    beat = worker.say(job_id, "heartbeat", leaseSeconds=60).json
    assert beat["cancelRequestedAt"] == job["cancelRequestedAt"]
    done = worker.say(job_id, "cancel/ack", message="stopped")
    assert (done.status_code, done.json["status"]) == (200, "cancelled")


def test_a_finished_job_cannot_be_cancelled(user: Caller, worker: Caller) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    worker.job()
    worker.say(job_id, "complete")
    answer = user.post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json["detail"]["code"]) == (409, "job_state_conflict")


@pytest.mark.parametrize(
    "payload",
    [{"requiredCapabilities": "gpu"}, {"requiredCapabilities": [1]},
     {"repository": "--upload-pack=x"}, {"repository": 7}, {"repository": "a/../b"}],
)  # fmt: skip
def test_a_payload_that_no_worker_may_be_handed_is_refused(
    edge: Edge, user: Caller, payload: dict[str, object]
) -> None:
    before = edge.state()
    answer = user.post("/jobs", {"type": "codex_exec", "payload": payload})
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")
    assert edge.state() == before


def test_a_payload_has_a_limit(edge: Edge, user: Caller) -> None:
    room = 256 * 1024 - len('{"a":""}')
    assert user.post("/jobs", {"type": "t", "payload": {"a": "x" * room}}).status_code == 201
    before = edge.state()
    assert user.post("/jobs", {"type": "t", "payload": {"a": "x" * (room + 1)}}).status_code == 422
    answer = user.post("/jobs", {"type": "t", "payload": {"a": "x" * 400_000}})
    assert (answer.status_code, answer.json["detail"]["code"]) == (413, "too_large")
    assert edge.state() == before
