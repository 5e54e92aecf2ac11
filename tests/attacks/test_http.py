"""Attacks on how a request is read: its JSON, its headers, its path, and the crash it hopes for."""

import gzip
import json
import logging
import tracemalloc
from typing import Any

import pytest

from edge_api.traffic import JsonFormatter
from tests.attacks.conftest import Caller, Edge, refusal, unchanged
from tests.contract.edge.served import Served

JSON = "application/json"
MALFORMED = (400, "malformed_json")
INVALID = (422, "invalid_queue_payload")
MEDIA = (415, "unsupported_media_type")
DEEP = 400_000
ROUTES = ("/jobs", "/workers/tokens", "/dead-letters/redrive")


def send(user: Caller, path: str, data: bytes, **more: Any) -> Any:
    return user.call("POST", path, data=data, **{"content_type": JSON, **more})


@pytest.mark.attack(61, 62, 63, 66)
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 250_000,
        b'{"a":' * 50_000,
        b'{"type":"t","payload":{"a":' + b"[" * 40 + b"]" * 40 + b"}}",
        b'{"priority":' + b"1" * 5000 + b"}",
        b'{"priority":9007199254740993}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"type":"t","type":"u"}',
        b'{"payload":{"a":1,"a":2}}',
        b'{"payload":{"a":1,"\\u0061":2}}',
        '{"type":"t"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"type":"t"}',
        b'{"type":"\xff"}',
        b'{"type":"\\ud800"}',
        b'{"type":"a\\u0000b"}',
        b'{"type":"t"} {}',
        b"{'type':'t'}",
        b'{"type":"t",}',
        b"\x00",
        b" ",
    ],
    ids=lambda data: repr(data[:24]) if isinstance(data, bytes) else None,
)
def test_json_that_readers_understand_differently(
    edge: Edge, user: Caller, path: str, data: bytes
) -> None:
    with unchanged(edge):
        assert refusal(send(user, path, data)) == MALFORMED


@pytest.mark.attack(66)
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("data", [b"null", b"[]", b'"x"', b"1", b"true", b"[{}]"])
def test_json_that_is_no_object(edge: Edge, user: Caller, path: str, data: bytes) -> None:
    with unchanged(edge):
        assert refusal(send(user, path, data)) == INVALID


@pytest.mark.attack(65)
def test_many_unknown_keys(edge: Edge, user: Caller) -> None:
    keys: dict[str, Any] = {f"k{n}": n for n in range(15_000)}
    with unchanged(edge):
        answer = send(user, "/jobs", json.dumps(keys).encode())
    # ignored, as newer clients need it: what is missed is named, and nothing that was sent
    assert refusal(answer) == INVALID
    assert set(answer.json["detail"]["errors"]) == {"type"}
    assert len(answer.data) <= 2048


@pytest.mark.attack(65)
def test_a_thousand_wrong_fields_are_named_up_to_twenty(edge: Edge, worker: Caller) -> None:
    events = [{"message": "", "level": "<script>", "workerSeq": -1}] * 100
    with unchanged(edge):
        answer = worker.say("00000000-0000-0000-0000-000000000000", "events", events=events)
    assert refusal(answer) == INVALID
    assert len(answer.json["detail"]["errors"]) <= 20
    assert b"<script>" not in answer.data


@pytest.mark.attack(67, 68)
@pytest.mark.parametrize(
    "more",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_type": "application/jsonp"},
        {"content_type": None},
        *({"headers": {"Content-Encoding": one}} for one in ("gzip", "deflate", "br", "zstd", "x")),
    ],
)
def test_bodies_that_are_not_plain_json(edge: Edge, user: Caller, more: dict[str, Any]) -> None:
    bomb = gzip.compress(b'{"type":"' + b"t" * 20_000_000 + b'"}')
    tracemalloc.start()
    with unchanged(edge):
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert refusal(send(user, "/jobs", bomb, **more)) == MEDIA
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 5_000_000


ID = "00000000-0000-0000-0000-000000000000"


@pytest.mark.attack(72)
@pytest.mark.parametrize(
    "path",
    [
        "/jobs/%2e%2e/%2e%2e/healthz",
        "/jobs/..%2f..%2fetc%2fpasswd",
        "/jobs/%00",
        f"/jobs/{ID}%00",
        f"/jobs/{ID};a=b",
        f"/jobs//{ID}",
        f"//jobs/{ID}",
        f"/jobs/{ID}/",
        f"/jobs/{ID.upper().replace('0', 'A')}",
        f"/jobs/{ID}%0d%0aX-Evil:%20a",
        "/jobs/%F0%9F%92%A9",
        "/jobs/%ff%fe",
        "/jobs/" + "x" * 3000,
        f"/jobs/{ID}/artifacts/..%2f..%2fx/download",
        f"/jobs/{ID}/artifacts/%00/download",
    ],
)
def test_paths_that_mean_something_elsewhere(edge: Edge, user: Caller, path: str) -> None:
    with unchanged(edge):
        answer = user.get(path)
    assert answer.status_code == 404
    assert "X-Evil" not in answer.headers


@pytest.mark.attack(72)
def test_no_route_takes_a_path(edge: Edge) -> None:
    rules = list(edge.app.url_map.iter_rules())
    assert rules
    assert not [rule for rule in rules if "path:" in rule.rule]


@pytest.mark.attack(73)
@pytest.mark.parametrize("method", ["TRACE", "PUT", "OPTIONS", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/jobs", "/jobs/claim", "/workers/tokens"])
def test_methods_nobody_offers(edge: Edge, user: Caller, method: str, path: str) -> None:
    with unchanged(edge):
        assert user.call(method, path).status_code == 405


@pytest.mark.attack(73)
def test_no_header_changes_the_method(edge: Edge, user: Caller) -> None:
    with unchanged(edge):
        for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
            answer = user.get("/jobs", headers={name: "POST"})
            assert answer.json == {"items": [], "nextCursor": None}


@pytest.mark.attack(79)
@pytest.mark.parametrize("path", ["/jobs", "/workers/tokens", f"/jobs/{ID}/events"])
@pytest.mark.parametrize(
    "limit", ["0", "-1", "1000000000", "1.5", "1e2", "x", "", "9" * 400, "%00", "%EF%BC%91", "0x10"]
)
def test_limits_out_of_bounds(edge: Edge, user: Caller, path: str, limit: str) -> None:
    with unchanged(edge):
        assert refusal(user.get(f"{path}?limit={limit}")) == INVALID


@pytest.mark.attack(79)
@pytest.mark.parametrize("after", ["-1", "1.5", "x", "", "9" * 20, "2026-13-01", "%00", "∞"])
def test_cursors_nobody_gave(edge: Edge, user: Caller, after: str) -> None:
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    with unchanged(edge):
        assert refusal(user.get(f"/jobs/{job_id}/events?after={after}")) == INVALID


@pytest.mark.attack(79)
@pytest.mark.parametrize(
    "cursor",
    ["x", "~", "2026-01-01~x", "9999-12-31T23:59:59-23:59~x", "0001-01-01T00:00:00%2B23:59~x"],
)
def test_pages_nobody_gave(edge: Edge, user: Caller, cursor: str) -> None:
    with unchanged(edge):
        assert refusal(user.get(f"/jobs?cursor={cursor}")) == INVALID


@pytest.mark.attack(80)
def test_a_crash_tells_its_caller_nothing(
    edge: Edge,
    user: Caller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError('hunter2\r\n{"level": "forged"}\x1b[31m')

    monkeypatch.setattr(edge.services.queue, "create", crash)
    with caplog.at_level(logging.ERROR), unchanged(edge):
        # not by the caller of the tests, which takes no 500 for an answer
        client = edge.app.test_client()
        answer = client.post("/api/queue/jobs", json={"type": "t"}, headers=user.headers)
    assert refusal(answer) == (500, "internal")
    assert b"hunter2" not in answer.data
    assert b"Traceback" not in answer.data
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    line = JsonFormatter().format(record)
    # all of it, on one line that colours nothing
    assert "hunter2" in json.loads(line)["traceback"]
    assert line.isprintable()
    assert line.isascii()


@pytest.mark.slow
@pytest.mark.attack(69)
def test_a_body_without_end(served: Served) -> None:
    head = (
        "POST /api/queue/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {served.operator}\r\nContent-Type: application/json\r\n"
    )
    chunk = b"40000\r\n" + b" " * 0x40000 + b"\r\n"
    chunked = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4 + b"0\r\n\r\n"
    assert served.raw(chunked)[0].startswith(b"HTTP/1.1 411 ")
    both = head.encode() + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert served.raw(both)[0].startswith(b"HTTP/1.1 400 ")
    twice = head.encode() + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
    assert served.raw(twice)[0].startswith(b"HTTP/1.1 400 ")


@pytest.mark.slow
@pytest.mark.attack(71)
def test_heads_without_end(served: Served) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for data, status in (
        (get + b"A: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
        (get + b"A: b\r\n" * 300 + b"\r\n", b"431"),
        (get + b"A: b\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (get + b"A: b\r\n c\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
    ):
        head, body = served.raw(data)
        assert head.startswith(b"HTTP/1.1 " + status), (data[:40], head[:40])
        assert json.loads(body)["detail"]["code"]
        assert b"X-Request-Id: " in head
