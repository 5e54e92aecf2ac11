"""Attacks on credentials: missing, malformed, guessed, stolen from a dump, of the wrong kind."""

import logging
import re
import statistics
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from broker import tokens
from broker.ledger.credentials import Credentials
from broker.ledger.models import Base
from tests.attacks.conftest import Caller, Edge, refusal, unchanged

FAILED = (401, "worker_auth_failed")
UNAUTHORIZED = (401, "unauthorized")
FORBIDDEN = (403, "worker_not_authorized")
SECOND = timedelta(seconds=1)


def text_of(caller: Caller) -> str:
    return caller.headers["Authorization"].removeprefix("Bearer ")


def bearing(edge: Edge, text: str) -> Caller:
    return Caller(edge.app, {"Authorization": f"Bearer {text}"}, "w1")


def another_secret(text: str) -> str:
    """Return a token of the same id and a right checksum, whose secret is not the id's."""
    kind, token_id = text.split("_")[1:3]
    body = f"drb_{kind}_{token_id}_{tokens.issue('worker').text.split('_')[3]}"
    return f"{body}_{tokens._base62(zlib.crc32(body.encode()), 6)}"


@pytest.fixture
def statements(edge: Edge) -> Iterator[list[str]]:
    """Give the statements that reach the database, but for those of the audit."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if not re.match(r"PRAGMA|BEGIN|.*\baudit", statement, re.DOTALL):
            sent.append(statement)

    engine = edge.services.queue.ledger.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.attack(1)
@pytest.mark.parametrize("path", ["/jobs", "/workers/tokens", "/nope"])
def test_no_credential(edge: Edge, path: str) -> None:
    with unchanged(edge):
        answer = edge.stranger().get(path)
    assert refusal(answer) == UNAUTHORIZED
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    with unchanged(edge):
        assert refusal(Caller(edge.app, {}, "w1").claim()) == FAILED


@pytest.mark.attack(2)
@pytest.mark.parametrize(
    "value", ["Basic {}", "bearer {}", "BEARER {}", "Bearer  {}", "{}", "Bearer {},Bearer {}"]
)
def test_other_schemes(edge: Edge, worker: Caller, value: str) -> None:
    header = {"Authorization": value.replace("{}", text_of(worker))}
    with unchanged(edge):
        assert refusal(Caller(edge.app, header, "w1").claim()) == FAILED
        several = [("Authorization", f"Bearer {text_of(worker)}")] * 2
        client = edge.app.test_client()
        answer = client.post("/api/queue/jobs/claim", headers=several, json={"workerId": "w1"})
        assert refusal(answer) == FAILED


@pytest.mark.attack(3)
def test_a_wrong_checksum_costs_no_statement(
    edge: Edge, worker: Caller, statements: list[str]
) -> None:
    text = text_of(worker)
    for place in range(0, len(text), 3):
        typo = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
        assert refusal(bearing(edge, typo).claim()) == FAILED
    assert statements == []
    assert worker.claim().status_code == 200
    assert statements != []


@pytest.mark.attack(4, 5)
def test_unknown_and_wrong_are_told_alike_and_take_alike(edge: Edge, worker: Caller) -> None:
    took: dict[str, list[float]] = {"unknown": [], "wrong": []}
    bodies = set()
    before = edge.state()
    for _ in range(200):
        guesses = {"unknown": tokens.issue("worker").text, "wrong": another_secret(text_of(worker))}
        for name, text in guesses.items():
            began = time.perf_counter()
            answer = bearing(edge, text).claim()
            took[name].append(time.perf_counter() - began)
            assert answer.status_code in {401, 429}
            bodies.add((name, answer.data))
    assert edge.state() == before
    # whatever is said to one is said to the other
    assert {body for name, body in bodies if name == "wrong"} == {
        body for name, body in bodies if name == "unknown"
    }
    # a lookup saved or a comparison skipped would show as a multiple
    unknown, wrong = (statistics.median(took[name]) for name in ("unknown", "wrong"))
    assert 0.5 < unknown / wrong < 2


@pytest.mark.attack(7)
@pytest.mark.parametrize("kind", ["worker", "operator", "producer"])
def test_an_expired_token(edge: Edge, kind: str) -> None:
    credentials: Credentials = edge.services.credentials
    now = edge.services.clock.now()
    name = "w1" if kind == "worker" else None
    made, text = credentials.create(kind, worker_id=name, expires_at=now + 60 * SECOND, now=now)
    for offset, good in ((59, True), (60, False), (61, False)):
        moment = made.created_at + offset * SECOND
        if good:
            assert credentials.verify(text, now=moment).id == made.id
        else:
            with pytest.raises(tokens.AuthFailed):
                credentials.verify(text, now=moment)


@pytest.mark.attack(8)
def test_a_token_where_it_does_not_belong(
    edge: Edge, user: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = text_of(user)
    client = edge.app.test_client()
    client.set_cookie("Authorization", f"Bearer {text}")
    client.set_cookie("token", text)
    body = {"token": text, "authorization": f"Bearer {text}", "type": "t"}
    with unchanged(edge):
        for name in ("token", "access_token", "Authorization"):
            assert refusal(client.get(f"/api/queue/jobs?{name}={text}")) == UNAUTHORIZED
        assert refusal(client.post("/api/queue/jobs", json=body)) == UNAUTHORIZED
        assert refusal(client.get(f"/api/queue/jobs/{text}")) == UNAUTHORIZED
    written = "".join(str(vars(record)) + record.getMessage() for record in caplog.records)
    assert text.split("_")[3] not in written


@pytest.mark.attack(9)
@pytest.mark.parametrize(
    "text",
    [
        "x" * 8000, "drb_wkr_" + "0" * 8000, "drb_wkr_\x80", "\u00ff" * 40, "drb__wkr_", "_" * 70,
        "null", "{}", "' OR 1=1--", "../../etc/passwd", "drb_wkr_%00", "a.b.c", "..", "e30.e30.",
    ],
)  # fmt: skip
def test_what_is_no_token(edge: Edge, text: str) -> None:
    with unchanged(edge):
        assert refusal(bearing(edge, text).claim()) == FAILED
        assert refusal(Caller(edge.app, {"X-Worker-Token": text}, "w1").claim()) == FAILED


@pytest.mark.attack(10)
def test_one_kind_on_the_routes_of_another(edge: Edge, worker: Caller, user: Caller) -> None:
    producer = edge.user("producer")
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    edge.services.queue.seen("w1")
    with unchanged(edge):
        for caller in (producer, user):
            as_worker = Caller(edge.app, caller.headers, "w1")
            assert refusal(as_worker.claim()) == FORBIDDEN
            assert refusal(as_worker.say(job_id, "heartbeat", leaseSeconds=60)) == FORBIDDEN
            assert refusal(as_worker.say(job_id, "complete")) == FORBIDDEN
        for caller in (producer, worker):
            assert refusal(caller.post("/workers/tokens", {"workerId": "w9"})) == FORBIDDEN
            assert refusal(caller.get("/workers/tokens")) == FORBIDDEN
            assert refusal(caller.post("/dead-letters/redrive", {"filter": {}})) == FORBIDDEN
        assert refusal(worker.post("/jobs", {"type": "t"})) == FORBIDDEN
        assert refusal(worker.post(f"/jobs/{job_id}/cancel")) == FORBIDDEN


@pytest.mark.attack(12)
def test_a_dump_of_the_ledger_lets_nobody_in(edge: Edge, worker: Caller, user: Caller) -> None:
    user.post("/jobs", {"type": "t"})
    worker.job()
    values: set[str] = set()
    with edge.services.queue.ledger.read() as conn:
        for table in Base.metadata.sorted_tables:
            for row in conn.execute(sa.select(table)):
                values |= {str(value) for value in row if value is not None}
    for text in (text_of(worker), text_of(user)):
        assert text.split("_")[3] not in "".join(values)
    ids = [one.split("_") for one in (text_of(worker), text_of(user))]
    guesses = {value for value in values if value.isprintable() and value.isascii()}
    # also where a column's value stands for the secret of a whole token
    for _, kind, token_id, *_ in ids:
        bodies = [f"drb_{kind}_{token_id}_{value[:43]}" for value in values]
        guesses |= {f"{body}_{tokens._base62(zlib.crc32(body.encode()), 6)}" for body in bodies}
    for guess in guesses:
        with pytest.raises(tokens.AuthFailed):
            edge.services.credentials.verify(guess, now=edge.services.clock.now())


@pytest.mark.attack(17)
def test_wrong_secrets_lock_nobody_out(edge: Edge, worker: Caller) -> None:
    wrong = another_secret(text_of(worker))
    elsewhere = {"environ_base": {"REMOTE_ADDR": "203.0.113.9"}}
    for _ in range(1000):
        answer = bearing(edge, wrong).post("/jobs/claim", {}, **elsewhere)
        assert answer.status_code in {401, 429}
    assert worker.claim().status_code == 200
