"""Who may call what: every route by every kind of credential, and every way to send one."""

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from broker import tokens
from broker.errors import LedgerUnavailable
from edge_api import assemble
from edge_api.auth import LOCAL
from tests.contract.edge.conftest import Caller, Edge, MakeEdge, check
from tests.processes import until

NOBODY = "00000000-0000-4000-8000-000000000000"

UPLOAD = "/api/queue/jobs/<string:job_id>/artifacts/uploads/<string:upload_id>"
#: what stands for itself in a path
VARIABLES = ("job_id", "artifact_id", "token_id", "worker_id", "upload_id", "number")
EVERYBODY = {"nobody", "worker", "producer", "operator"}
USERS = {"producer", "operator"}
#: who may call what; a route that is not here fails the test that enumerates them
MAY = {
    ("GET", "/healthz"): EVERYBODY,
    ("GET", "/readyz"): EVERYBODY,
    ("GET", "/metrics"): {"operator"},
    ("GET", "/openapi.json"): USERS | {"worker"},
    ("GET", "/api/queue/jobs"): USERS,
    ("POST", "/api/queue/jobs"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>"): USERS | {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/cancel"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>/attempts"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>/why"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>/events"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>/artifacts"): USERS,
    ("GET", "/api/queue/jobs/<string:job_id>/artifacts/<string:artifact_id>/download"): USERS,
    ("POST", "/api/queue/jobs/claim"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/heartbeat"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/complete"): {"worker"},
    ("POST", "/api/queue/jobs/complete"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/fail"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/release"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/cancel/ack"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/events"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/artifacts/upload"): {"worker"},
    ("POST", "/api/queue/jobs/<string:job_id>/artifacts/uploads"): {"worker"},
    ("GET", UPLOAD): {"worker"},
    ("POST", f"{UPLOAD}/parts/<string:number>"): {"worker"},
    ("POST", f"{UPLOAD}/complete"): {"worker"},
    ("POST", "/api/queue/dead-letters/redrive"): {"operator"},
    ("GET", "/api/queue/workers"): {"operator"},
    ("POST", "/api/queue/workers/hello"): {"worker"},
    ("POST", "/api/queue/workers/bye"): {"worker"},
    ("GET", "/api/queue/workers/control"): {"worker"},
    ("POST", "/api/queue/workers/<string:worker_id>/drain"): {"operator"},
    ("POST", "/api/queue/workers/<string:worker_id>/resume"): {"operator"},
    ("POST", "/api/queue/workers/<string:worker_id>/concurrency"): {"operator"},
    ("POST", "/api/queue/workers/<string:worker_id>/pause"): {"operator"},
    ("POST", "/api/queue/workers/<string:worker_id>/unpause"): {"operator"},
    ("GET", "/api/queue/workers/tokens"): {"operator"},
    ("POST", "/api/queue/workers/tokens"): {"operator"},
    ("POST", "/api/queue/workers/tokens/<string:token_id>/revoke"): {"operator"},
    ("POST", "/api/queue/workers/tokens/<string:token_id>/rotate"): {"operator"},
}


def routes(app: Flask) -> Iterator[tuple[str, str]]:
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD"}):
            yield method, rule.rule


def test_every_route_says_who_may_call_it() -> None:
    assert set(routes(assemble())) == set(MAY)


def test_no_route_takes_a_path() -> None:
    for rule in assemble().url_map.iter_rules():
        assert "path:" not in rule.rule


@pytest.mark.parametrize("method,rule", MAY)
def test_every_route_by_every_kind(edge: Edge, method: str, rule: str) -> None:
    path = rule
    for name in VARIABLES:
        path = path.replace(f"<string:{name}>", NOBODY)
    callers = {
        "nobody": edge.stranger(),
        "worker": edge.worker(),
        "producer": edge.user("producer"),
        "operator": edge.user("operator"),
    }
    edge.services.queue.seen("w1")
    for kind, caller in callers.items():
        before = edge.state()
        response = edge.app.test_client().open(path, method=method, headers=caller.headers)
        check(edge.app, method, response)
        if kind in MAY[method, rule]:
            assert response.status_code not in {401, 403}, kind
            continue
        assert response.status_code == (401 if kind == "nobody" else 403), kind
        wants_worker = MAY[method, rule] == {"worker"}
        expected = "worker_auth_failed" if wants_worker else "unauthorized"
        expected = expected if kind == "nobody" else "worker_not_authorized"
        assert response.json["detail"]["code"] == expected
        assert edge.state() == before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_head_asks_for_the_same_credential(edge: Edge, method: str) -> None:
    call = edge.app.test_client().open
    assert call("/api/queue/jobs", method=method).status_code == 401
    headers = edge.worker().headers
    assert call("/api/queue/jobs", method=method, headers=headers).status_code == 403
    headers = edge.user().headers
    assert call("/api/queue/jobs", method=method, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/api/queue",
        "/api/queue/nope",
        "//api/queue/jobs",
        "/api/queue/jobs/",
        "/api/queue//jobs",
        "/static/x",
        "/api/queue/openapi.json",
    ],
)
def test_strangers_are_not_told_which_routes_there_are(edge: Edge, path: str) -> None:
    call = edge.app.test_client().open
    unknown = call(path, base_url="http://localhost")
    check(edge.app, "GET", unknown)
    assert (unknown.status_code, unknown.json["detail"]["code"]) == (401, "unauthorized")
    known = call(path, base_url="http://localhost", headers=edge.user().headers)
    check(edge.app, "GET", known)
    assert (known.status_code, known.json["detail"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "FOO"])
def test_wrong_methods_are_refused(edge: Edge, method: str) -> None:
    call = edge.app.test_client().open
    assert call("/api/queue/jobs", method=method).status_code == 401
    override = {"X-HTTP-Method-Override": "POST"}
    response = call("/api/queue/jobs", method=method, headers=edge.user().headers | override)
    check(edge.app, method, response)
    assert (response.status_code, response.json["detail"]["code"]) == (405, "method_not_allowed")


def token_of(caller: Caller) -> str:
    return caller.headers["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("header", ["X-Worker-Token", "X-MoonMind-Worker-Token"])
def test_a_worker_token_has_headers_of_its_own(edge: Edge, worker: Caller, header: str) -> None:
    token = token_of(worker)
    own = Caller(edge.app, {header: token}, "w1")
    assert own.claim().status_code == 200
    # of two kinds, the worker's counts
    operator = {"Authorization": f"Bearer {token_of(edge.user())}"}
    both = Caller(edge.app, {header: token} | operator, "w1")
    assert both.claim().status_code == 200
    assert both.get("/jobs").status_code == 403
    broken = Caller(edge.app, {header: token[:-1]} | operator, "w1")
    assert broken.get("/jobs").status_code == 401
    foreign = Caller(edge.app, {header: token_of(edge.user())}, "w1")
    assert foreign.get("/jobs").status_code == 401


def bad_tokens(good: str) -> Iterator[str]:
    swapped = good[:-8] + ("a" if good[-8] != "a" else "b") + good[-7:]
    yield from ("", "x", "drb_", good[:-1], good + "0", swapped, good.upper(), good.lower())
    yield from (f" {good}", f"{good} ", f"{good},{good}", f"{good}\u00e9", "\u00ff" * 10)
    yield from ("x" * 8000, good.replace("wkr", "opr"), base64.b64encode(good.encode()).decode())


def test_what_is_no_token_is_refused(edge: Edge, worker: Caller) -> None:
    good = token_of(worker)
    edge.services.queue.seen("w1")
    before = edge.state()
    for text in bad_tokens(good):
        for headers in ({"Authorization": f"Bearer {text}"}, {"X-Worker-Token": text}):
            answer = Caller(edge.app, headers, "w1").claim()
            assert answer.status_code == 401, (text, headers)
            assert answer.json["detail"]["code"] == "worker_auth_failed"
    assert edge.state() == before


@pytest.mark.parametrize(
    "scheme", ["Basic", "bearer", "BEARER", "Token", "", "Bearer:", "Bearer\t", "Bearer Bearer"]
)
def test_other_schemes_are_refused(edge: Edge, worker: Caller, scheme: str) -> None:
    header = {"Authorization": f"{scheme} {token_of(worker)}"}
    assert Caller(edge.app, header, "w1").claim().status_code == 401


def test_a_token_counts_nowhere_else(edge: Edge, user: Caller) -> None:
    token = token_of(user)
    client = edge.app.test_client()
    client.set_cookie("Authorization", f"Bearer {token}")
    for path in (f"/api/queue/jobs?token={token}", f"/api/queue/jobs?Authorization=Bearer {token}"):
        assert client.get(path).status_code == 401


def test_unknown_and_wrong_are_told_alike(edge: Edge, worker: Caller) -> None:
    unknown = tokens.issue("worker").text
    _, _, token_id, _, _ = token_of(worker).split("_")
    while (other := tokens.issue("worker")).id == token_id:
        pass
    body = f"drb_wkr_{token_id}_{other.text.split('_')[3]}"
    wrong = f"{body}_{tokens._checksum(body)}"
    answers = [
        Caller(edge.app, {"X-Worker-Token": text}, "w1").claim() for text in (unknown, wrong)
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].data == answers[1].data


def test_an_expired_token_is_refused(edge: Edge) -> None:
    services = edge.services
    now = services.clock.now()
    _, text = services.credentials.create(
        "worker", worker_id="w1", expires_at=now + timedelta(milliseconds=1), now=now
    )
    until(lambda: services.clock.now() > now + timedelta(milliseconds=1))
    assert Caller(edge.app, {"X-Worker-Token": text}, "w1").claim().status_code == 401


def test_while_the_ledger_is_away_a_known_token_serves_heartbeats_alone(
    edge: Edge, user: Caller, worker: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.post("/jobs", {"type": "t"})
    job_id = worker.job()["id"]

    def away(*_args: Any, **_kwargs: Any) -> Any:
        raise LedgerUnavailable

    ledger = edge.services.queue.ledger
    for kind in ("read", "glance", "write"):
        monkeypatch.setattr(ledger, kind, away)
    # what was known a moment ago has aged
    edge.services.credentials._remembered._fresh.clear()
    assert worker.say(job_id, "heartbeat", leaseSeconds=60).status_code == 200
    for answer in (worker.claim(), worker.say(job_id, "complete"), worker.get(f"/jobs/{job_id}")):
        assert (answer.status_code, answer.json["detail"]["code"]) == (503, "unavailable")
    assert edge.app.test_client().get("/readyz").status_code == 503
    assert edge.app.test_client().get("/healthz").status_code == 200
    # the ledger is back, but nobody has asked it about this token yet
    monkeypatch.undo()
    assert worker.say(job_id, "heartbeat", leaseSeconds=60).status_code == 200
    assert worker.claim().status_code == 503
    stranger = Caller(edge.app, {"X-Worker-Token": token_of(edge_token())}, "w9").claim()
    assert stranger.status_code == 503


def edge_token() -> Caller:
    return Caller(assemble(), {"Authorization": f"Bearer {tokens.issue('worker').text}"})


class TestAuthDisabled:
    """``AUTH_PROVIDER=disabled``: whoever sits at this machine is an operator."""

    @pytest.fixture
    def edge(self, make_edge: MakeEdge, sqlite_url: str) -> Edge:
        return make_edge(sqlite_url, auth_disabled=True)

    def test_lets_this_machine_in(self, edge: Edge) -> None:
        local = edge.stranger()
        job = local.post("/jobs", {"type": "t"})
        assert (job.status_code, job.json["createdByUserId"]) == (201, LOCAL.id)
        assert local.post("/workers/tokens", {"workerId": "w1"}).status_code == 201

    def test_makes_nobody_a_worker(self, edge: Edge) -> None:
        assert Caller(edge.app, {}, "w1").claim().status_code == 403

    @pytest.mark.parametrize("peer", ["10.0.0.1", "192.168.1.5", "::2", "", "8.8.8.8"])
    def test_lets_no_other_machine_in(self, edge: Edge, peer: str) -> None:
        answer = edge.stranger().get("/jobs", environ_base={"REMOTE_ADDR": peer})
        assert answer.status_code == 401

    @pytest.mark.parametrize(
        "header",
        [
            "Forwarded",
            "Via",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Real-IP",
        ],
    )
    def test_lets_nobody_in_by_proxy(self, edge: Edge, header: str) -> None:
        assert edge.stranger().get("/jobs", headers={header: "127.0.0.1"}).status_code == 401

    def test_still_refuses_a_wrong_token(self, edge: Edge) -> None:
        assert Caller(edge.app, {"Authorization": "Bearer x"}).get("/jobs").status_code == 401
