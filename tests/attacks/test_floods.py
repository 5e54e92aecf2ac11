"""Attacks by number: guesses without end, and a worker that calls as fast as it can."""

import time
from ipaddress import ip_address

import pytest

from broker import tokens
from edge_api.rates import counted_as
from tests.attacks.conftest import Caller, Edge, MakeEdge, refusal, unchanged

NAT = {"environ_base": {"REMOTE_ADDR": "203.0.113.9"}}
LIMITED = (429, "rate_limited")


def guess(edge: Edge) -> Caller:
    return Caller(edge.app, {"Authorization": f"Bearer {tokens.issue('worker').text}"}, "w1")


@pytest.mark.attack(16)
def test_a_thousand_bad_tokens_shut_out_bad_tokens_alone(edge: Edge, worker: Caller) -> None:
    allowed = edge.services.settings.failures_per_min
    stranger = guess(edge)
    body = {"workerId": "w1", "leaseSeconds": 60}
    with unchanged(edge):
        answers = []
        for at in range(1000):
            answers.append(stranger.post("/jobs/claim", body, **NAT))
            if at % 20 == 0:
                # the same address, all the while
                assert worker.post("/jobs/claim", body, **NAT).status_code == 200
    statuses = [answer.status_code for answer in answers]
    # a minute may turn meanwhile
    assert statuses[:allowed].count(401) == allowed
    assert statuses.count(429) >= 1000 - 5 * allowed
    limited = next(answer for answer in answers if answer.status_code == 429)
    assert refusal(limited) == LIMITED
    # the rest of the minute, and up to two seconds so that not all come back at once
    assert 1 <= int(limited.headers["Retry-After"]) <= 62
    assert "WWW-Authenticate" not in limited.headers
    # and nobody elsewhere
    assert stranger.post("/jobs/claim", body).status_code == 401


def test_a_worker_that_floods_its_log_keeps_its_lease(make_edge: MakeEdge, sqlite_url: str) -> None:
    edge = make_edge(sqlite_url, calls_per_s=1)
    edge.user().post("/jobs", {"type": "t"})
    flooding, other = edge.worker("w1"), edge.worker("w2")
    job_id = flooding.job()["id"]
    answers = [flooding.say(job_id, "events", message="again") for _ in range(30)]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {201, 429}
    assert refusal(answers[statuses.index(429)]) == LIMITED
    beats = [flooding.say(job_id, "heartbeat", leaseSeconds=60) for _ in range(30)]
    assert {answer.status_code for answer in beats} == {200, 429}
    # and a flood of either keeps no lease from ending
    assert flooding.say(job_id, "complete").status_code == 200
    assert other.claim().status_code == 200


@pytest.mark.attack(16)
def test_guesses_at_two_edges_are_one_flood(
    make_edge: MakeEdge, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)  # so that no minute turns meanwhile
    edges = [make_edge(sqlite_url, failures_per_min=20) for _ in range(2)]
    worker = edges[0].worker("w1")
    statuses = [guess(edges[at % 2]).get("/jobs", **NAT).status_code for at in range(40)]
    assert 20 <= statuses.count(401) <= 22
    for edge in edges:
        # who is good is let in from the same address
        assert (
            Caller(edge.app, worker.headers, "w1")
            .post("/jobs/claim", {"workerId": "w1", "leaseSeconds": 60}, **NAT)
            .status_code
            == 200
        )


@pytest.mark.parametrize(
    "address,counted",
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
    ],
)
def test_where_a_refused_credential_counts(address: str, counted: str) -> None:
    assert counted_as(ip_address(address)) == counted


def test_an_address_nobody_knows_counts_too() -> None:
    assert counted_as(None) == "unknown"
