"""Every route by every kind of credential there is, JWTs among them; from the URL map."""

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from tests.attacks.conftest import Caller, Edge, MakeEdge
from tests.attacks.issuer import Issuer, claims, make, sign
from tests.contract.edge.test_auth import EVERYBODY, MAY, NOBODY, VARIABLES, routes


@pytest.fixture
def edge(make_edge: MakeEdge, sqlite_url: str, tmp_path: Path) -> Iterator[Edge]:
    """Give an edge that believes an issuer, and carries the issuer with it."""
    key = make("one", "EdDSA")
    issuer = Issuer(keys=[key.jwk()])
    made = make_edge(sqlite_url, oidc_config=issuer.config(tmp_path / "oidc.toml"))
    made.key = key  # type: ignore[attr-defined]
    yield made
    issuer.stop()


def callers(edge: Edge) -> dict[str, tuple[str, Caller]]:
    """Return by name a caller and whose rights it has."""

    def jwt(**said: object) -> Caller:
        token = sign(edge.key, claims(**said))  # type: ignore[attr-defined]
        return Caller(edge.app, {"Authorization": f"Bearer {token}"})

    def header(name: str) -> Caller:
        text = edge.worker().headers["Authorization"].removeprefix("Bearer ")
        return Caller(edge.app, {name: text})

    revoked = edge.worker("w1")
    made, *_ = edge.services.credentials.list(kind="worker", limit=1)
    edge.services.credentials.revoke(made.id, now=edge.services.clock.now())
    return {
        "nobody": ("nobody", edge.stranger()),
        "worker": ("worker", edge.worker()),
        "worker by header": ("worker", header("X-Worker-Token")),
        "worker by old header": ("worker", header("X-MoonMind-Worker-Token")),
        "producer": ("producer", edge.user("producer")),
        "operator": ("operator", edge.user("operator")),
        "revoked worker": ("nobody", revoked),
        "out of range": ("none", edge.worker("w1", ip_ranges=("192.0.2.1/32",))),
        "jwt worker": ("worker", jwt()),
        "jwt operator": ("operator", jwt(sub="boss", groups=["ops"])),
        "jwt producer": ("producer", jwt(sub="shop")),
        "jwt without rule": ("none", jwt(sub="stranger")),
        "jwt expired": ("nobody", jwt(iat=1, exp=2)),
        "jwt of another": ("nobody", jwt(aud="other")),
    }


ADDRESSES = count(1)


def ask(edge: Edge, method: str, path: str, caller: Caller) -> TestResponse:
    """Make a call from an address of its own: one that fails too often is told to wait."""
    peer = {"REMOTE_ADDR": str(ip_address("10.9.0.0") + next(ADDRESSES))}
    return edge.app.test_client().open(
        path, method=method, headers=caller.headers, environ_base=peer
    )


@pytest.mark.attack(50)
def test_every_route_by_every_kind(edge: Edge) -> None:
    assert set(routes(edge.app)) == set(MAY)
    known = callers(edge)
    edge.services.queue.seen("w1")
    before = edge.state()
    for method, rule in MAY:
        path = rule
        for name in VARIABLES:
            path = path.replace(f"<string:{name}>", NOBODY)
        assert "<" not in path
        for name, (kind, caller) in known.items():
            if MAY[method, rule] == EVERYBODY or kind in MAY[method, rule]:
                continue
            answer = ask(edge, method, path, caller)
            expected = 401 if kind == "nobody" else 403
            assert answer.status_code == expected, (method, rule, name)
    assert edge.state() == before
    for method, rule in MAY:
        path = rule
        for name in VARIABLES:
            path = path.replace(f"<string:{name}>", NOBODY)
        for name, (kind, caller) in known.items():
            if kind in MAY[method, rule]:
                answer = ask(edge, method, path, caller)
                assert answer.status_code not in {401, 403}, (method, rule, name)


@pytest.mark.attack(118)
def test_a_browser_sent_across_sites_carries_no_credential(edge: Edge) -> None:
    client = edge.app.test_client()
    token = edge.user().headers["Authorization"]
    for name in ("session", "token", "Authorization", "drawbridge"):
        client.set_cookie(name, token)
    before = edge.state()
    for path in ("/jobs", "/workers/tokens", "/dead-letters/redrive", f"/jobs/{NOBODY}/cancel"):
        for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
            answer = client.post(
                f"/api/queue{path}",
                environ_base={"REMOTE_ADDR": str(ip_address("10.8.0.0") + next(ADDRESSES))},
                data=b'{"type":"t"}',
                content_type=kind,
                headers={"Origin": "https://evil.example", "Referer": "https://evil.example/"},
            )
            assert answer.status_code == 401
            assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
            assert "Set-Cookie" not in answer.headers
    assert edge.state() == before
