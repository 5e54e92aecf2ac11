"""Attacks by JWT, against a real issuer on loopback that signs with real keys."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from broker.errors import AuthFailed, ConfigurationError, Unavailable
from broker.issuers import LOOK_EVERY_S, read
from edge_api import jwks
from edge_api.jwks import COOLDOWN_S, FRESH_S, STALE_S, Keys
from edge_api.oidc import Oidc
from edge_api.services import EXTENSION
from tests.attacks.conftest import Caller, Edge, MakeEdge, refusal, unchanged
from tests.attacks.issuer import AUDIENCE, HOUR_S, ISSUER, Issuer, Key, claims, make, sign

FAILED = (401, "worker_auth_failed")
FORBIDDEN = (403, "worker_not_authorized")
UNAVAILABLE = (503, "unavailable")


@pytest.fixture(scope="session")
def keys() -> dict[str, Key]:
    """Give a key of each kind: making them takes longer than most tests."""
    return {name: make(name.lower(), name) for name in ("RS256", "ES256", "EdDSA")}


@pytest.fixture
def issuer(keys: dict[str, Key]) -> Iterator[Issuer]:
    made = Issuer(keys=[one.jwk() for one in keys.values()])
    yield made
    made.stop()


@dataclass
class Guarded:
    """An edge that believes the issuer, and the clock by which it does."""

    edge: Edge
    config: Path
    at: float = 1000.0

    def worker(self, token: str) -> Caller:
        """Return a worker that shows a token."""
        return Caller(self.edge.app, {"Authorization": f"Bearer {token}"}, "w1")

    def refuses(self, token: str, expected: tuple[int, str] = FAILED) -> None:
        """Claim with a token, be refused, and find nothing changed."""
        with unchanged(self.edge):
            assert refusal(self.worker(token).claim()) == expected


@pytest.fixture
def guarded(make_edge: MakeEdge, sqlite_url: str, tmp_path: Path, issuer: Issuer) -> Guarded:
    config = issuer.config(tmp_path / "oidc.toml")
    made = Guarded(make_edge(sqlite_url, oidc_config=config), config)
    services = made.edge.services
    oidc = Oidc(config, timer=lambda: made.at)
    made.edge.app.extensions[EXTENSION] = replace(services, oidc=oidc)
    made.edge.services.queue.seen("w1")
    return made


def encoded(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token_is_the_worker_that_a_rule_names(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer, algorithm: str
) -> None:
    token = sign(keys[algorithm], claims(aud=["other", AUDIENCE]))
    guarded.edge.user().post("/jobs", {"type": "t"})
    guarded.edge.user().post("/jobs", {"type": "other"})
    worker = guarded.worker(token)
    job = worker.job()
    assert (job["type"], job["claimedBy"]) == ("t", "w1")
    assert worker.claim().json["job"] is None
    assert worker.say(job["id"], "complete").status_code == 200
    assert refusal(worker.get("/jobs")) == FORBIDDEN
    assert refusal(worker.post("/jobs/claim", {"workerId": "w2", "leaseSeconds": 60})) == FORBIDDEN
    assert issuer.asked == 1
    # in a header of workers' tokens it is none
    odd = Caller(guarded.edge.app, {"X-Worker-Token": token}, "w1")
    assert refusal(odd.claim()) == FAILED


def test_other_kinds_come_by_rule_too(guarded: Guarded, keys: dict[str, Key]) -> None:
    boss = guarded.worker(sign(keys["EdDSA"], claims(sub="boss", groups=["dev", "ops"])))
    assert boss.post("/workers/tokens", {"workerId": "w9"}).status_code == 201
    assert refusal(boss.claim()) == FORBIDDEN
    shop = guarded.worker(sign(keys["EdDSA"], claims(sub="shop")))
    assert shop.post("/jobs", {"type": "t"}).json["createdByUserId"] == "oidc:test:shop"
    assert refusal(shop.get("/workers/tokens")) == FORBIDDEN


def test_a_genuine_token_without_a_rule_is_nobody(guarded: Guarded, keys: dict[str, Key]) -> None:
    for said in (
        {"sub": "stranger"}, {"sub": "CI"}, {"sub": "ci "}, {"sub": "boss"}, {"sub": "xci"},
        {"sub": "boss", "groups": "operators"}, {"sub": "boss", "groups": {"ops": 1}},
    ):  # fmt: skip
        expected = FAILED if " " in said["sub"] else FORBIDDEN
        guarded.refuses(sign(keys["ES256"], claims(**said)), expected)


@pytest.mark.attack(21)
def test_no_algorithm_and_a_public_key_as_a_secret(guarded: Guarded, keys: dict[str, Key]) -> None:
    body = encoded(claims())
    for name in ("none", "None", "NONE", "nOnE", "", None, 1, ["RS256"]):
        header = encoded({"alg": name, "typ": "at+jwt", "kid": "rs256"})
        guarded.refuses(f"{header}.{body}.")
        guarded.refuses(f"{header}.{body}.AAAA")
    public = keys["RS256"].private.public_key()
    forms = (
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        json.dumps(keys["RS256"].jwk()).encode(),
    )
    for secret in forms:
        signed = encoded({"alg": "HS256", "typ": "at+jwt", "kid": "rs256"}) + "." + body
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        guarded.refuses(f"{signed}.{encoded(mac)}")


@pytest.mark.attack(22)
@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_an_algorithm_that_is_not_pinned(
    guarded: Guarded, keys: dict[str, Key], algorithm: str
) -> None:
    guarded.refuses(sign(keys["RS256"], alg=algorithm))
    # the name of one key, the algorithm of another
    guarded.refuses(sign(keys["ES256"], kid="rs256"))
    guarded.refuses(sign(keys["RS256"], kid="eddsa"))


@pytest.mark.attack(23)
def test_another_audience(guarded: Guarded, keys: dict[str, Key]) -> None:
    for aud in (
        "other", None, f"{AUDIENCE}2", f"x{AUDIENCE}", AUDIENCE.upper(), "", [], ["a", "b"],
        [AUDIENCE[:-1]], {"aud": AUDIENCE}, 7,
    ):  # fmt: skip
        guarded.refuses(sign(keys["EdDSA"], claims(aud=aud)))


@pytest.mark.attack(24)
def test_another_issuer(guarded: Guarded, keys: dict[str, Key], issuer: Issuer) -> None:
    for iss in (
        "https://evil.example", f"{ISSUER}/", None, "", ISSUER.upper(), issuer.url, 7, [ISSUER],
    ):  # fmt: skip
        said = claims(iss=iss)
        header = {"alg": "EdDSA", "typ": "at+jwt", "kid": "eddsa"}
        signed = f"{encoded(header)}.{encoded(said)}"
        signature = keys["EdDSA"].private.sign(signed.encode())
        guarded.refuses(f"{signed}.{encoded(signature)}")
    assert issuer.asked == 0


@pytest.mark.attack(25)
def test_moments_that_make_no_sense(guarded: Guarded, keys: dict[str, Key]) -> None:
    now = int(time.time())
    key = keys["EdDSA"]
    for said in (
        {"iat": now - 600, "exp": now - 120}, {"exp": None}, {"exp": now + 100 * 365 * 86400},
        {"exp": now + 2 * HOUR_S}, {"iat": now + 600, "exp": now + 900}, {"nbf": now + 600},
        {"iat": None}, {"iat": now - 25 * HOUR_S, "exp": now + 60}, {"exp": 2**52}, {"iat": -1},
        {"iat": True, "exp": True}, {"nbf": [now]}, {"exp": {}},
    ):  # fmt: skip
        guarded.refuses(sign(key, claims(**said)))
    for text in ("iat", "exp", "nbf"):
        header = encoded({"alg": "EdDSA", "typ": "at+jwt", "kid": key.kid})
        signed = f"{header}.{encoded(claims() | {text: str(now)})}"
        guarded.refuses(f"{signed}.{encoded(key.private.sign(signed.encode()))}")
    # a clock that is a little off is no attack
    assert guarded.worker(sign(key, claims(iat=now + 20, exp=now + 600))).claim().status_code == 200


@pytest.mark.attack(26)
def test_names_of_keys(guarded: Guarded, keys: dict[str, Key], issuer: Issuer) -> None:
    guarded.worker(sign(keys["EdDSA"])).claim()
    for kid in ("../../etc/passwd", "' OR 1=1--", "x" * 10_000, "x" * 129, "", "eddsa\x00", "rs2"):
        guarded.refuses(sign(keys["EdDSA"], kid=kid))
    body = encoded(claims())
    for header in (
        '{"alg":"EdDSA","typ":"at+jwt"}', '{"alg":"EdDSA","typ":"at+jwt","kid":null}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":["eddsa"]}', "[]", "null", "7", '{"alg":"EdDSA"',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"eddsa","kid":"eddsa"}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"eddsa","crit":["x"],"x":1}',
    ):  # fmt: skip
        signed = f"{encoded(header.encode())}.{body}"
        guarded.refuses(f"{signed}.{encoded(keys['EdDSA'].private.sign(signed.encode()))}")
    assert issuer.asked == 1


@pytest.mark.attack(27)
def test_a_token_that_brings_its_own_key(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer
) -> None:
    mine = make("mine", "EdDSA")
    trap = Issuer(keys=[mine.jwk(), mine.jwk(kid="eddsa")])
    try:
        for kid in ("mine", "eddsa"):
            for header in ({"jku": trap.url}, {"x5u": trap.url}, {"jwk": mine.jwk()}):
                guarded.refuses(sign(mine, kid=kid, **header))
        # a genuine one is believed all the same, and nobody follows what it points to
        assert guarded.worker(sign(keys["EdDSA"], jku=trap.url)).claim().status_code == 200
        assert trap.asked == 0
        assert issuer.asked == 1
    finally:
        trap.stop()


@pytest.mark.attack(29)
def test_an_issuer_that_is_away(guarded: Guarded, keys: dict[str, Key], issuer: Issuer) -> None:
    known, unknown = sign(keys["RS256"]), sign(make("new", "EdDSA"))
    assert guarded.worker(known).claim().status_code == 200
    issuer.stop()
    for age in (FRESH_S - 1, FRESH_S + COOLDOWN_S, STALE_S - 1):
        guarded.at = 1000.0 + age
        assert guarded.worker(known).claim().status_code == 200
        guarded.refuses(unknown)
    guarded.at = 1000.0 + STALE_S
    guarded.refuses(known, UNAVAILABLE)
    # nobody else suffers
    assert guarded.edge.worker("w1").claim().status_code == 200


@pytest.mark.attack(30)
def test_keys_that_change(guarded: Guarded, keys: dict[str, Key], issuer: Issuer) -> None:
    old, new = sign(keys["ES256"]), make("new", "ES256")
    assert guarded.worker(old).claim().status_code == 200
    issuer.keys = [new.jwk()]
    guarded.refuses(sign(new))  # just asked
    guarded.at += COOLDOWN_S
    assert guarded.worker(sign(new)).claim().status_code == 200
    assert issuer.asked == 2
    # gone from the issuer, gone here
    guarded.refuses(old)
    for _ in range(20):
        guarded.refuses(sign(make("other", "EdDSA")))
    assert issuer.asked == 2
    issuer.keys = []
    guarded.at += FRESH_S
    guarded.refuses(sign(new))
    assert issuer.asked == 3


@pytest.mark.attack(31)
@pytest.mark.parametrize(
    "junk",
    [
        (200, {}, b'{"keys": [' + b" " * (jwks.SIZE_MAX + 1) + b"]}"),
        (200, {"Content-Type": "text/html"}, b"<html>sign in</html>"),
        (302, {"Location": "http://169.254.169.254/latest/meta-data"}, b""),
        (301, {"Location": "/keys"}, b'{"keys": []}'),
        (500, {}, b""),
        (200, {"Content-Length": "1000000000"}, b"{"),
        (200, {}, b"[" * 5000),
        (200, {}, b'{"keys": {"kid": "eddsa"}}'),
        (200, {}, b"null"),
        (200, {}, b"\xff\xfe"),
    ],
    ids=["huge", "html", "away", "around", "500", "cut", "deep", "dict", "null", "utf16"],
)
def test_junk_instead_of_keys(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer, junk: tuple[int, dict[str, str], bytes]
) -> None:
    issuer.junk = junk
    guarded.refuses(sign(keys["EdDSA"]), UNAVAILABLE)
    assert guarded.edge.worker("w1").claim().status_code == 200
    assert issuer.asked == 1
    issuer.junk = None
    guarded.refuses(sign(keys["EdDSA"]), UNAVAILABLE)
    guarded.at += COOLDOWN_S
    assert guarded.worker(sign(keys["EdDSA"])).claim().status_code == 200


@pytest.mark.attack(31)
def test_an_issuer_that_drips_is_cut(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 0.5)
    issuer.junk = (200, {"Content-Length": "100000"}, b"{")
    answer = issuer.server.RequestHandlerClass.do_GET
    pace, cut = threading.Event(), threading.Event()

    def drip(handler: Any) -> None:
        answer(handler)
        try:
            while not pace.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            cut.set()

    monkeypatch.setattr(issuer.server.RequestHandlerClass, "do_GET", drip)
    with pytest.raises((AuthFailed, Unavailable)):
        Keys(issuer.url).get("eddsa", "EdDSA")
    # hung up by us, long before the hundred thousandth byte
    assert cut.wait(30)
    pace.set()


@pytest.mark.attack(32)
def test_keys_that_are_too_short_or_for_something_else(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer
) -> None:
    good = keys["EdDSA"]
    short = make("short", "RS256", bits=1024)
    issuer.keys = [
        short.jwk(), keys["RS256"].jwk(use="enc"), keys["ES256"].jwk(alg="ES384"),
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"}, {"kid": 7}, "x", None,
        good.jwk(kid="twice"), make("twice", "EdDSA").jwk(), {"kty": "RSA", "kid": "bad", "n": "!"},
        good.jwk(),
    ]  # fmt: skip
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak = sign(short)
    guarded.refuses(weak)
    for key in (keys["RS256"], keys["ES256"], replace(good, kid="twice"), replace(good, kid="bad")):
        guarded.refuses(sign(key))
    assert guarded.worker(sign(good)).claim().status_code == 200


@pytest.mark.attack(34)
def test_another_type_of_token(guarded: Guarded, keys: dict[str, Key]) -> None:
    for kind in ("JWT", "jwt", "id_token", "logout+jwt", "", None, "at+jwt; x", 7):
        guarded.refuses(sign(keys["EdDSA"], typ=kind))
    for kind in ("AT+JWT", "application/at+jwt"):
        assert guarded.worker(sign(keys["EdDSA"], typ=kind)).claim().status_code == 200


@pytest.mark.attack(35)
def test_a_token_that_is_huge_or_deep(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer
) -> None:
    deep = encoded(b"[" * 375_000)
    header = encoded({"alg": "EdDSA", "typ": "at+jwt", "kid": "eddsa"})
    for text in (
        f"{header}.{deep}.AAAA", f"{deep}.{header}.AAAA", f"{header}.{encoded(b'[' * 4000)}.AAAA",
        sign(keys["EdDSA"], claims(more="x" * 8000)), "..", "a.b.c", f"{header}..", "=.=.=",
        f"{header}.{encoded(claims())}.AA=A", f"{header}.{encoded(b'{}')}.", "é.é.é",
        f"{header}.{encoded(b'{' + json.dumps(claims())[1:].encode() + b' ')}.AAAA",
    ):  # fmt: skip
        guarded.refuses(text)
    assert issuer.asked <= 1


def test_a_tampered_token(guarded: Guarded, keys: dict[str, Key]) -> None:
    header, body, signature = sign(keys["ES256"]).split(".")
    boss = encoded(claims(sub="boss", groups="ops"))
    for text in (f"{header}.{boss}.{signature}", f"{header}.{body}.{signature[:-4]}"):
        guarded.refuses(text)


def test_rules_that_change_are_followed_and_broken_ones_are_not(
    guarded: Guarded, keys: dict[str, Key], issuer: Issuer
) -> None:
    worker = guarded.worker(sign(keys["EdDSA"]))
    assert worker.claim().status_code == 200
    guarded.config.write_text("nonsense = ")
    guarded.at += LOOK_EVERY_S
    assert worker.claim().status_code == 200
    issuer.config(guarded.config, '[[issuer.rule]]\nclaims = {sub = "x"}\nkind = "producer"\n')
    guarded.at += LOOK_EVERY_S
    assert refusal(worker.claim()) == FORBIDDEN


@pytest.mark.parametrize(
    "old,new",
    [
        ('"RS256", ', '"HS256", '),
        ('"RS256", ', '"none", '),
        ("insecure_loopback = true", ""),
        ("http://127.0.0.1", "http://192.0.2.1"),
        ("http://127.0.0.1", "ftp://127.0.0.1"),
        ("http://127.0.0.1", "https://user@127.0.0.1"),
        ('audience = "drawbridge"', ""),
        ('audience = "drawbridge"', 'audience = ""'),
        ('sub = "ci"', ""),
        ('sub = "ci"', "sub = 7"),
        ('worker_id = "w1"', ""),
        ('kind = "operator"', 'kind = "operator"\ntypes = ["t"]'),
        ('kind = "operator"', 'kind = "root"'),
        ('types = ["t"]', "types = [7]"),
        ('types = ["t"]', 'typos = ["t"]'),
        ('types = ["t"]', 'ip_ranges = ["here"]'),
        ('types = ["t"]', "max_concurrency = true"),
        ('name = "test"', 'name = "Test!"'),
        ("[[issuer]]", "[issuer]"),
    ],
)
def test_a_file_that_is_wrong_is_refused(
    issuer: Issuer, tmp_path: Path, old: str, new: str
) -> None:
    path = issuer.config(tmp_path / "oidc.toml")
    text = path.read_text()
    assert len(read(path)) == 1
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=r"oidc\.toml is wrong"):
        read(path)


def test_many_at_once_fetch_once(issuer: Issuer) -> None:
    at = [0.0]
    found = Keys(issuer.url, timer=lambda: at[0])
    assert found.get("eddsa", "EdDSA").algorithm_name == "EdDSA"
    with pytest.raises(AuthFailed):
        found.get("eddsa", "RS256")
    assert issuer.asked == 1
