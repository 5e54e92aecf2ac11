"""Workers' tokens, and what a worker is told when it starts."""

from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge


def test_a_token_is_shown_once(edge: Edge, user: Caller) -> None:
    body = {
        "workerId": "w-1", "description": "laptop", "allowedRepositories": ["Org/*", "Org/Repo"],
        "allowedJobTypes": ["codex_exec"], "capabilities": [], "queues": ["remote"],
        "maxConcurrency": 2, "expiresAt": "2099-01-01T00:00:00Z",
    }  # fmt: skip
    made = user.post("/workers/tokens", body)
    assert made.status_code == 201
    token = made.json["workerToken"]
    assert token["allowedRepositories"] == ["github.com/org/*", "github.com/org/repo"]
    assert (token["allowedJobTypes"], token["capabilities"]) == (["codex_exec"], [])
    assert (token["queues"], token["maxConcurrency"]) == (["remote"], 2)
    assert (token["isActive"], token["expiresAt"]) == (True, "2099-01-01T00:00:00.000000Z")
    listed = user.get("/workers/tokens")
    assert listed.json["items"] == [token]
    assert made.json["token"] not in listed.text
    worker = Caller(edge.app, {"Authorization": f"Bearer {made.json['token']}"}, "w-1")
    assert worker.claim().status_code == 200


def test_a_token_without_limits_says_so(user: Caller) -> None:
    token = user.post("/workers/tokens", {"workerId": "w"}).json["workerToken"]
    unlimited = ("allowedRepositories", "allowedJobTypes", "capabilities", "queues")
    assert [token[name] for name in unlimited] == [None] * 4
    assert (token["maxConcurrency"], token["expiresAt"], token["lastUsedAt"]) == (None,) * 3


def test_a_revoked_token_is_refused_on_every_edge(edge: Edge, user: Caller, worker: Caller) -> None:
    assert worker.claim().status_code == 200
    (token,) = user.get("/workers/tokens").json["items"]
    revoked = user.post(f"/workers/tokens/{token['id']}/revoke")
    assert (revoked.status_code, revoked.json["isActive"]) == (200, False)
    assert user.post(f"/workers/tokens/{token['id']}/revoke").json == revoked.json
    refused = worker.claim()
    assert (refused.status_code, refused.json["detail"]["code"]) == (401, "worker_auth_failed")


@pytest.mark.parametrize("name", ["x", "000000000000", "%00", "..", "0" * 500])
def test_what_is_no_token_is_not_found(user: Caller, name: str) -> None:
    answer = user.post(f"/workers/tokens/{name}/revoke")
    assert answer.status_code == 404
    assert answer.json["detail"]["code"] == "worker_token_not_found"


def test_only_workers_tokens_are_listed_and_revoked_here(edge: Edge, user: Caller) -> None:
    edge.user("producer")
    assert user.get("/workers/tokens").json["items"] == []
    operator, *_ = edge.services.credentials.list(kind="operator")
    answer = user.post(f"/workers/tokens/{operator.id}/revoke")
    assert (answer.status_code, answer.json["detail"]["code"]) == (404, "worker_token_not_found")


def test_hello_tells_the_rhythm(edge: Edge, worker: Caller) -> None:
    body = {
        "workerId": "w1", "instanceId": "i", "version": "0.1.0", "types": ["codex_exec"],
        "capabilities": [], "concurrency": 1,
    }  # fmt: skip
    answer = worker.post("/workers/hello", body)
    assert answer.status_code == 200
    pace = [answer.json[name] for name in ("heartbeatSeconds", "waitSeconds", "leaseSeconds")]
    assert (answer.json["workerId"], pace) == ("w1", [20, 25, 60])
    assert {"lease-id", "claim-wait", "release"} <= set(answer.json["features"])
    before = edge.state()
    stranger = worker.post("/workers/hello", body | {"workerId": "w2"})
    assert (stranger.status_code, stranger.json["detail"]["code"]) == (403, "worker_not_authorized")
    assert edge.state() == before


def test_goodbye_ends_the_open_claims_of_that_daemon_alone(user: Caller, worker: Caller) -> None:
    body = {"workerId": "w1", "instanceId": "i"}
    for _ in range(2):
        assert worker.post("/workers/bye", body).json == {"workerId": "w1"}
    user.post("/jobs", {"type": "t"})
    assert worker.claim(instanceId="i").json["job"] is None
    assert worker.claim(instanceId="j").json["job"] is not None
    stranger = worker.post("/workers/bye", body | {"workerId": "w2"})
    assert stranger.status_code == 403
    assert worker.post("/workers/bye", {"workerId": "w1"}).status_code == 422


def test_every_call_marks_its_worker_seen(edge: Edge, worker: Caller) -> None:
    seen = edge.services.queue.reservations.client.zscore
    assert seen("{db:}:seen", "w1") is None
    worker.claim()
    assert seen("{db:}:seen", "w1") is not None


def test_a_worker_says_with_any_call_how_busy_its_machine_is(edge: Edge, worker: Caller) -> None:
    def say(load: str) -> Any:
        edge.services.presence._marked.clear()  # a worker is marked once a second
        claim = {"workerId": "w1", "leaseSeconds": 60}
        said = worker.post("/jobs/claim", claim, headers={"Bridge-Load": load})
        assert said.status_code == 200
        return edge.services.queue.reservations.client.hgetall("{db:}:loads")

    assert say("0.50,1,12.25") == {"w1": "0.50,1,12.25"}
    for wrong in ("1,2", "x", "nan,1,1", "1,2,3,4", "-1,0,0", "9" * 99 + ",1,1"):
        assert say(wrong) == {"w1": "0.50,1,12.25"}
