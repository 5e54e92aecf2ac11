"""Attacks on who may do what: another's job or name, more than a policy gives, from elsewhere."""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.client import HTTPConnection
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.credentials import Credentials
from broker.policy import Policy
from tests.attacks.conftest import Caller, Edge, MakeEdge, refusal, unchanged
from tests.processes import Process, until

MISMATCH = (409, "job_ownership_mismatch")
FORBIDDEN = (403, "worker_not_authorized")
INVALID = (422, "invalid_queue_payload")
FAILED = (401, "worker_auth_failed")
COMMAND = Path(sys.executable).with_name("drawbridge")
CALLS: dict[str, dict[str, Any]] = {
    "heartbeat": {"leaseSeconds": 60},
    "complete": {"resultSummary": "mine"},
    "fail": {"errorMessage": "mine", "retryable": False},
    "release": {},
    "cancel/ack": {},
}


@pytest.fixture
def thief(edge: Edge) -> Caller:
    return edge.worker("thief")


@pytest.fixture
def held(user: Caller, worker: Caller, edge: Edge) -> dict[str, Any]:
    """Give a job that w1 holds."""
    user.post("/jobs", {"type": "t", "payload": {"secret": 1}})
    edge.services.queue.seen("thief")
    return worker.job()


@pytest.mark.attack(36, 38)
@pytest.mark.parametrize("call", CALLS)
def test_another_workers_job(
    edge: Edge, thief: Caller, held: dict[str, Any], worker: Caller, call: str
) -> None:
    with unchanged(edge):
        for lease in ({}, {"leaseId": "x" * 32}):
            answer = thief.say(held["id"], call, **CALLS[call], **lease)
            assert refusal(answer) == MISMATCH
    assert worker.say(held["id"], "heartbeat", leaseSeconds=60).status_code == 200


@pytest.mark.attack(37)
@pytest.mark.parametrize("call", CALLS)
def test_a_stolen_lease_is_no_use_without_its_credential(
    edge: Edge, thief: Caller, held: dict[str, Any], call: str
) -> None:
    with unchanged(edge):
        answer = thief.say(held["id"], call, **CALLS[call], leaseId=held["leaseId"])
        assert refusal(answer) == MISMATCH


@pytest.mark.attack(41, 51)
def test_foreign_and_absent_jobs_look_alike(
    edge: Edge, thief: Caller, held: dict[str, Any]
) -> None:
    absent = "00000000-0000-4000-8000-000000000000"
    with unchanged(edge):
        answers = [thief.get(f"/jobs/{one}") for one in (held["id"], absent)]
        assert {answer.status_code for answer in answers} == {404}
        assert answers[0].data == answers[1].data
        for path in ("events", "artifacts", "why", "attempts"):
            assert refusal(thief.get(f"/jobs/{held['id']}/{path}")) == FORBIDDEN
        assert refusal(thief.get("/jobs")) == FORBIDDEN


@pytest.mark.attack(42)
def test_a_lease_that_is_over(edge: Edge, worker: Caller, thief: Caller, user: Caller) -> None:
    user.post("/jobs", {"type": "t"})
    old = worker.job()
    worker.say(old["id"], "release", leaseId=old["leaseId"])
    new = thief.job()
    assert new["id"] == old["id"]
    with unchanged(edge):
        for call, body in CALLS.items():
            if call != "release":
                answer = worker.say(old["id"], call, **body, leaseId=old["leaseId"])
                assert refusal(answer) == MISMATCH
    again = thief.say(new["id"], "heartbeat", leaseSeconds=60, leaseId=new["leaseId"])
    assert again.status_code == 200


@pytest.mark.attack(44, 45)
def test_identity_and_state_come_from_nobodys_body(
    edge: Edge, thief: Caller, worker: Caller, held: dict[str, Any], user: Caller
) -> None:
    with unchanged(edge):
        for call, body in CALLS.items():
            path = f"/jobs/{held['id']}/{call}"
            assert refusal(thief.post(path, {**body, "workerId": "w1"})) == FORBIDDEN
        claim = {"workerId": "w1", "leaseSeconds": 60}
        assert refusal(thief.post("/jobs/claim", claim)) == FORBIDDEN
    mine = {"fence": 99, "attempt": 9, "maxAttempts": 99, "status": "queued", "policy": {}}
    mine |= {"state": "x", "claimedBy": "thief", "max_attempts": 99, "not_before": 0}
    job = worker.say(held["id"], "heartbeat", leaseSeconds=60, **mine).json
    assert (job["fence"], job["attempt"], job["maxAttempts"], job["claimedBy"]) == (1, 1, 3, "w1")
    made = user.post("/jobs", {"type": "t", **mine, "id": held["id"], "maxAttempts": 2}).json
    assert (made["status"], made["fence"], made["maxAttempts"]) == ("queued", 0, 2)
    assert made["id"] != held["id"]


@pytest.mark.attack(46)
@pytest.mark.parametrize(
    "seconds", [0, -1, 1e9, 10.5, True, "60", None, 3601, 2**53, [60], {"s": 60}]
)
def test_leases_of_no_length(
    edge: Edge, worker: Caller, held: dict[str, Any], seconds: object
) -> None:
    with unchanged(edge):
        assert refusal(worker.claim(leaseSeconds=seconds)) == INVALID
        beat = worker.say(held["id"], "heartbeat", leaseSeconds=seconds)
        assert refusal(beat) == INVALID


@pytest.mark.attack(47)
def test_a_claim_asks_for_more_than_its_policy(edge: Edge, user: Caller) -> None:
    payload = {"repository": "org/secret", "requiredCapabilities": ["gpu"]}
    user.post("/jobs", {"type": "codex_exec", "payload": payload})
    wish = {"allowedTypes": ["codex_exec", "echo"], "workerCapabilities": ["gpu", "cpu"]}
    more = {"queues": ["remote"], "allowedRepositories": ["*/*"], "capabilities": ["gpu"]}
    for name, policy in {
        "type": {"types": ("echo",)},
        "capability": {"capabilities": ("cpu",)},
        "repository": {"repositories": ("github.com/org/open",)},
        "glob": {"repositories": ("github.com/other/*", "gitlab.com/*/*")},
        "queue": {"queues": ("other",)},
        "empty": {"types": ()},
        "none": {"repositories": ()},
        "nowhere": {"queues": ()},
    }.items():
        worker = edge.worker(name, **policy)
        edge.services.queue.seen(name)
        with unchanged(edge):
            answer = worker.claim(**wish, **more)
            assert answer.status_code == 403 or answer.json["job"] is None, name
    assert edge.worker("fits", repositories=("github.com/org/*",)).job(**wish)["type"]


@pytest.mark.attack(13)
def test_a_rotation_costs_no_lease(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    credentials, now = edge.services.credentials, edge.services.clock.now()
    (old,) = credentials.list(kind="worker")[-1:]
    operator = edge.user()
    made = operator.post(f"/workers/tokens/{old.id}/rotate", {"overlapSeconds": 3600})
    assert made.status_code == 201
    new = Caller(edge.app, {"Authorization": f"Bearer {made.json['token']}"}, "w1")
    for one in (worker, new, worker):
        assert one.say(held["id"], "heartbeat", leaseSeconds=60).status_code == 200
    again = operator.post(f"/workers/tokens/{old.id}/rotate")
    assert refusal(again) == (409, "worker_token_conflict")
    with pytest.raises(Exception, match="credential"):
        credentials.verify(
            worker.headers["Authorization"].removeprefix("Bearer "), now=now + timedelta(hours=2)
        )
    done = new.say(held["id"], "complete", leaseId=held["leaseId"])
    assert done.status_code == 200


@pytest.mark.attack(49)
def test_a_policy_narrowed_while_a_job_runs(
    edge: Edge, worker: Caller, held: dict[str, Any], user: Caller
) -> None:
    """What is held may be finished; the next claim, also one that waits already, obeys."""
    services = edge.services
    (token,) = [one for one in services.credentials.list() if one.worker_id == "w1"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.claim, waitSeconds=20)
        until(lambda: len(services.waiting) == 1)
        services.credentials.allow(token.id, Policy(types=("other",)), now=services.clock.now())
        user.post("/jobs", {"type": "t"})
        wanted = user.post("/jobs", {"type": "other"}).json
        assert waiting.result(60).json["job"]["id"] == wanted["id"]
    assert worker.claim().json["job"] is None
    assert worker.say(held["id"], "heartbeat", leaseSeconds=60).status_code == 200
    assert worker.say(held["id"], "complete", leaseId=held["leaseId"]).status_code == 200


@pytest.mark.attack(49)
def test_a_token_revoked_while_its_claim_waits(edge: Edge, worker: Caller, user: Caller) -> None:
    services = edge.services
    (token,) = services.credentials.list(kind="worker")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.claim, waitSeconds=20)
        until(lambda: len(services.waiting) == 1)
        services.credentials.revoke(token.id, now=services.clock.now())
        job = user.post("/jobs", {"type": "t"}).json
        assert refusal(waiting.result(60)) == FAILED
    assert user.get(f"/jobs/{job['id']}").json["status"] == "queued"


def from_(peer: str, forwarded: str | None = None) -> dict[str, Any]:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    return {"environ_base": {"REMOTE_ADDR": peer}, "headers": headers}


@pytest.mark.parametrize(
    "peer,forwarded,status",
    [
        ("10.1.2.3", None, 200),
        ("::ffff:10.1.2.3", None, 200),
        ("2001:db8::7", None, 200),
        ("11.1.2.3", None, 403),
        ("2001:db9::7", None, 403),
        ("", None, 403),
        # a stranger's word counts for nothing
        ("11.1.2.3", "10.1.2.3", 403),
        # a proxy's does, and only of what it saw itself
        ("192.0.2.1", "10.1.2.3", 200),
        ("192.0.2.1", "11.1.2.3", 403),
        ("192.0.2.1", "10.1.2.3, 11.1.2.3", 403),
        ("192.0.2.1", "11.1.2.3, 10.1.2.3", 200),
        ("192.0.2.1", "11.1.2.3, 10.1.2.3, 192.0.2.2", 200),
        ("192.0.2.1", "10.1.2.3, nonsense", 403),
        ("192.0.2.1", "", 403),
        ("192.0.2.1", None, 403),
    ],
)
def test_a_token_used_from_elsewhere(
    make_edge: MakeEdge, sqlite_url: str, peer: str, forwarded: str | None, status: int
) -> None:
    edge = make_edge(sqlite_url, trusted_proxies=(ip_network("192.0.2.0/24"),))
    worker = edge.worker("w1", ip_ranges=("10.0.0.0/8", "2001:db8::/32"))
    edge.services.queue.seen("w1")
    with unchanged(edge):
        body = {"workerId": "w1", "leaseSeconds": 60}
        answer = worker.post("/jobs/claim", body, **from_(peer, forwarded))
    assert answer.status_code == status


@pytest.mark.slow
def test_a_revocation_reaches_every_edge(
    process: Callable[..., Process],
    edge: Edge,
    sqlite_url: str,
    valkey_url: str,
    tmp_path: Path,
) -> None:
    """Two edges of their own: the one that was told, and the one that was not."""
    env = {
        "DRAWBRIDGE_DATABASE_URL": sqlite_url,
        "DRAWBRIDGE_RESERVATIONS_URL": valkey_url,
        "DRAWBRIDGE_ARTIFACTS_DIR": str(tmp_path / "artifacts"),
        "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "NORMAL",
    }
    argv = [COMMAND, "edge", "--port", "0", "--threads", "60", "--json"]
    ports = []
    for number in range(2):
        started = process(argv, env=env, stdout_apart=True, name=f"edge-{number}")
        url = json.loads(started.wait_for(r'^\{"url": "http://127.0.0.1:\d+"\}$')[0])["url"]
        ports.append(int(url.rpartition(":")[2]))
    worker, operator = edge.worker("w1"), edge.user()

    def call(port: int, caller: Caller, path: str, body: Any) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {**caller.headers, "Content-Type": "application/json"}
        connection.request("POST", f"/api/queue{path}", json.dumps(body), headers)
        status = connection.getresponse().status
        connection.close()
        return status

    claim = {"workerId": "w1", "leaseSeconds": 60}
    for port in ports:
        assert call(port, worker, "/jobs/claim", claim) == 200
    (token,) = edge.services.credentials.list(kind="worker")
    with ThreadPoolExecutor(2) as pool:
        barrier = threading.Barrier(2)

        def wait(port: int) -> int:
            barrier.wait()
            return call(port, worker, "/jobs/claim", {**claim, "waitSeconds": 40})

        waiting = [pool.submit(wait, port) for port in ports]
        assert call(ports[0], operator, f"/workers/tokens/{token.id}/revoke", {}) == 200
        # who was told believes it no more at the very next call, others once they ask Redis
        assert call(ports[0], worker, "/jobs/claim", claim) == 401
        until(lambda: call(ports[1], worker, "/jobs/claim", claim) == 401, 30)
        # and who waits is turned away at the next look, long before the 40 s are over
        assert [one.result(30) for one in waiting] == [401, 401]
    # a revocation that Redis never heard of reaches them by the ledger
    worker = edge.worker("w2")
    claim = {"workerId": "w2", "leaseSeconds": 60}
    for port in ports:
        assert call(port, worker, "/jobs/claim", claim) == 200
    token, *_ = edge.services.credentials.list(kind="worker", limit=1)
    Credentials(edge.services.queue.ledger).revoke(token.id, now=edge.services.clock.now())
    for port in ports:
        until(lambda at=port: call(at, worker, "/jobs/claim", claim) == 401, 60)
