"""Attacks by saying it again: in parallel, otherwise, too late, in another's name, or cut short."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.attacks.conftest import Caller, Edge, refusal, unchanged
from tests.attacks.test_artifacts import upload

CONFLICT = (409, "job_state_conflict")
MISMATCH = (409, "job_ownership_mismatch")
FORBIDDEN = (403, "worker_not_authorized")
INVALID = (422, "invalid_queue_payload")
#: the ways in which a lease ends, and what each says
ENDS: dict[str, dict[str, Any]] = {
    "complete": {"result": {"n": 1}},
    "fail": {"errorMessage": "no", "retryable": False},
    "release": {},
    "cancel/ack": {},
}


def decided(edge: Edge) -> dict[str, object]:
    """Return what the ledger says, but for its counters of what was asked."""
    rows = edge.state()[0]  # type: ignore[index]
    return {table: rows[table] for table in rows if table not in {"bridge_state", "workers"}}


def key(name: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Idempotency-Key": name}}


def claim(worker: Caller, name: str, **more: Any) -> Any:
    body = {"workerId": worker.worker_id, "leaseSeconds": 60, **more}
    return worker.post("/jobs/claim", body, **key(name)).json["jobs"]


@pytest.fixture
def held(user: Caller, worker: Caller) -> dict[str, Any]:
    """Give a job that w1 holds and has taken up."""
    user.post("/jobs", {"type": "t", "payload": {"secret": 1}})
    job = worker.job()
    worker.say(job["id"], "heartbeat", leaseSeconds=60, leaseId=job["leaseId"])
    return job


@pytest.fixture
def thief(edge: Edge) -> Caller:
    return edge.worker("thief")


@pytest.mark.attack(53)
def test_one_claim_sent_ten_times_at_once(edge: Edge, user: Caller, worker: Caller) -> None:
    for _ in range(10):
        user.post("/jobs", {"type": "t"})
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: claim(worker, "k"), range(10)))
    assert [len(one) for one in answers] == [1] * 10
    assert len({(job["id"], job["leaseId"], job["fence"]) for (job,) in answers}) == 1
    assert len(user.get("/jobs?status=running").json["items"]) == 1
    with unchanged(edge):
        assert claim(worker, "k")[0]["leaseId"] == answers[0][0]["leaseId"]


@pytest.mark.attack(53)
def test_one_key_for_another_question(edge: Edge, user: Caller, worker: Caller) -> None:
    user.post("/jobs", {"type": "t"})
    user.post("/jobs", {"type": "t"})
    claim(worker, "k")
    with unchanged(edge):
        body = {"workerId": "w1", "leaseSeconds": 61}
        assert refusal(worker.post("/jobs/claim", body, **key("k"))) == INVALID


@pytest.mark.attack(54)
def test_a_second_result_is_refused_and_the_first_stays(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    def complete(result: object) -> Any:
        return worker.say(held["id"], "complete", leaseId=held["leaseId"], result=result)

    first = complete({"n": 1})
    with unchanged(edge):
        again = complete({"n": 1})
        assert (again.status_code, again.json) == (200, first.json)
        for other in ({"n": 2}, {"n": 1.5}, {"n": True}, None, {}):
            assert refusal(complete(other)) == CONFLICT
    assert user.get(f"/jobs/{held['id']}").json["result"] == {"n": 1}


@pytest.mark.attack(55)
@pytest.mark.parametrize("first", ["complete", "fail", "cancel/ack"])
def test_an_end_after_the_end(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any], first: str
) -> None:
    if first == "cancel/ack":
        user.post(f"/jobs/{held['id']}/cancel", {})
    lease = {"leaseId": held["leaseId"]}
    assert worker.say(held["id"], first, **lease, **ENDS[first]).status_code == 200
    with unchanged(edge):
        for other in ENDS.keys() - {first}:
            assert refusal(worker.say(held["id"], other, **lease, **ENDS[other])) == CONFLICT
            assert refusal(worker.say(held["id"], other, **ENDS[other])) == CONFLICT
        beat = worker.say(held["id"], "heartbeat", leaseSeconds=60, **lease)
        assert refusal(beat) == CONFLICT
        assert refusal(worker.say(held["id"], "events", message="late", **lease)) == CONFLICT
        assert refusal(upload(worker, held["id"], b"late")) == CONFLICT
        if first != "cancel/ack":
            assert refusal(user.post(f"/jobs/{held['id']}/cancel", {})) == CONFLICT


@pytest.mark.attack(57)
@pytest.mark.parametrize("call", [*ENDS, "events", "artifacts/upload"])
def test_a_call_whose_answer_was_lost(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any], call: str
) -> None:
    def say() -> Any:
        if call == "artifacts/upload":
            return upload(worker, held["id"], b"bytes", leaseId=held["leaseId"])
        more = {"message": "x", "workerSeq": 1} if call == "events" else ENDS[call]
        return worker.say(held["id"], call, leaseId=held["leaseId"], **more)

    if call == "cancel/ack":
        user.post(f"/jobs/{held['id']}/cancel", {})
    first = say()
    assert first.status_code in {200, 201}
    with unchanged(edge):
        again = say()
    assert (again.status_code, again.json) == (first.status_code, first.json)


@pytest.mark.attack(57)
@pytest.mark.parametrize(
    "path,body",
    [
        ("/jobs", {"type": "t", "idempotencyKey": "k"}),
        ("/jobs/J/cancel", {"reason": "x"}),
        ("/workers/w1/drain", None),
        ("/workers/w1/concurrency", {"concurrency": 3}),
        ("/workers/w1/pause", {"queue": "remote"}),
        ("/workers/tokens/T/revoke", None),
    ],
)
def test_an_operators_call_whose_answer_was_lost(
    edge: Edge, user: Caller, held: dict[str, Any], path: str, body: Any
) -> None:
    token = user.get("/workers/tokens").json["items"][0]["id"]
    path = path.replace("J", held["id"]).replace("T", token)
    first = user.post(path, body)
    assert first.status_code in {200, 201}
    before = decided(edge)
    again = user.post(path, body)
    assert decided(edge) == before
    assert (again.status_code, again.json) == (first.status_code, first.json)


@pytest.mark.attack(58)
def test_batches_again_overlapping_and_with_gaps(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    def append(*numbers: int) -> Any:
        entries = [{"workerSeq": n, "message": f"line {n}"} for n in numbers]
        return worker.say(held["id"], "events", leaseId=held["leaseId"], events=entries)

    first = append(1, 2, 3)
    with unchanged(edge):
        assert append(1, 2, 3).json == first.json
        assert append(3, 1, 3).status_code == 201
        for number in (2**53, 2**53 + 1, -1, 10**400, 1.5, "4", True):
            assert append(number).status_code in {400, 422}
    append(2, 3, 4)
    append(9, 4, 9)
    append(2**53 - 1)
    log = user.get(f"/jobs/{held['id']}/events").json["items"]
    said = [one["message"] for one in log if one["message"].startswith("line")]
    assert sorted(said) == sorted(f"line {n}" for n in (1, 2, 3, 4, 9, 2**53 - 1))
    assert [one["seq"] for one in log] == sorted({one["seq"] for one in log})


@pytest.mark.attack(59)
def test_the_key_of_another_worker(edge: Edge, user: Caller, worker: Caller, thief: Caller) -> None:
    user.post("/jobs", {"type": "t", "payload": {"secret": 1}})
    (mine,) = claim(worker, "k")
    with unchanged(edge):
        assert claim(thief, "k") == []
    user.post("/jobs", {"type": "t"})
    (other,) = claim(thief, "k")
    assert other["id"] != mine["id"]
    assert claim(worker, "k")[0]["leaseId"] == mine["leaseId"]


@pytest.mark.attack(59)
def test_the_key_of_another_producer(edge: Edge) -> None:
    one, other = edge.user("producer"), edge.user("producer")
    body = {"type": "t", "idempotencyKey": "k", "payload": {"secret": 1}}
    first = one.post("/jobs", body).json
    second = other.post("/jobs", body | {"payload": {}}).json
    assert second["id"] != first["id"]
    assert second["payload"] == {}


@pytest.mark.attack(39)
def test_the_log_of_another(edge: Edge, thief: Caller, held: dict[str, Any]) -> None:
    with unchanged(edge):
        for lease in ({}, {"leaseId": held["leaseId"]}, {"leaseId": "x" * 32}):
            answer = thief.say(held["id"], "events", message="forged", **lease)
            assert refusal(answer) == MISMATCH
            batch = [{"workerSeq": 1, "message": "forged"}]
            assert refusal(thief.say(held["id"], "events", events=batch, **lease)) == MISMATCH


@pytest.mark.attack(40)
def test_the_files_of_another(
    edge: Edge, user: Caller, worker: Caller, thief: Caller, held: dict[str, Any]
) -> None:
    file = upload(worker, held["id"], b"secret").json
    user.post("/jobs", {"type": "t"})
    own = thief.job()["id"]
    with unchanged(edge):
        for lease in ({}, {"leaseId": held["leaseId"]}):
            answer = upload(thief, held["id"], b"forged", **lease)
            assert answer.status_code in {403, 409}
            answer = upload(thief, held["id"], b"forged", name="b.log", **lease)
            assert answer.status_code in {403, 409}
        for path in ("artifacts", f"artifacts/{file['id']}/download"):
            assert refusal(thief.get(f"/jobs/{held['id']}/{path}")) == FORBIDDEN
            assert refusal(thief.get(f"/jobs/{own}/{path}")) == FORBIDDEN
        wrong = user.get(f"/jobs/{own}/artifacts/{file['id']}/download")
        assert refusal(wrong) == (409, "artifact_job_mismatch")


@pytest.mark.attack(92)
@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "\x1b[31mred\x1b[2J", 'a\r\n{"level": "error"}', "\u202e"]
)
def test_a_log_that_would_like_to_be_more(
    user: Caller, worker: Caller, held: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert worker.say(held["id"], "events", message=text).status_code == 201
        answer = user.get(f"/jobs/{held['id']}/events")
    assert answer.json["items"][-1]["message"] == text
    assert answer.mimetype == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert text not in caplog.text


@pytest.mark.attack(92)
def test_a_log_that_is_too_much(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    with unchanged(edge):
        for count in (101, 10_001):
            many = [{"message": "x"}] * count
            assert refusal(worker.say(held["id"], "events", events=many)) == INVALID
        huge = worker.call(
            "POST", f"/jobs/{held['id']}/events",
            data=io.BytesIO(b'{"message": "' + b"x" * 1024 * 1024 + b'"}'),
            content_type="application/json", content_length=1024 * 1024 + 15,
        )  # fmt: skip
        assert refusal(huge) == (413, "too_large")
