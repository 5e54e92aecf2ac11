"""Bad input for each route: a typed refusal, nothing changed, never a 500."""

import json
from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge

both_databases = pytest.mark.parametrize(
    "edge", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)

#: a good body of each route that takes JSON, with "J" for a job that the worker holds
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "create": ("user /jobs", {"type": "t"}),
    "cancel": ("user /jobs/J/cancel", {}),
    "token": ("user /workers/tokens", {"workerId": "w2"}),
    "claim": ("worker /jobs/claim", {"workerId": "w1", "leaseSeconds": 60}),
    "heartbeat": ("worker /jobs/J/heartbeat", {"workerId": "w1", "leaseSeconds": 60}),
    "complete": ("worker /jobs/J/complete", {"workerId": "w1"}),
    "fail": ("worker /jobs/J/fail", {"workerId": "w1", "errorMessage": "x"}),
    "release": ("worker /jobs/J/release", {"workerId": "w1"}),
    "ack": ("worker /jobs/J/cancel/ack", {"workerId": "w1"}),
    "events": ("worker /jobs/J/events", {"workerId": "w1", "message": "x"}),
    "hello": ("worker /workers/hello", {"workerId": "w1"}),
}
ABSENT = object()
NUMBERS = [0, -1, 10**9, 10.5, True, "60", None, [], {}, ABSENT]
COUNTS = [0, -1, 10**12, 1.5, True, "1", [], {}]
WORDS = ["", "   ", "a\nb", "\x7f", 1, True, [], {}]
LISTS = ["a", {}, 1, [1], [""], [None], [["a"]], ["a\nb"], ["x" * 256], ["a"] * 257]
TEXTS = [1, True, [], {}]
LEASES = ["", "?", "x" * 65, "a b", "a\n", 1, [], {}]
WORKERS = ["", " ", "a b", "a/b", "ü", "x" * 129, 1, None, True, [], {}, ABSENT]

#: values that a field must refuse
BAD: dict[str, dict[str, list[Any]]] = {
    "create": {
        "type": [*WORDS, "x" * 65, None, ABSENT],
        "priority": [2**31, -(2**31) - 1, 1.5, "1", True, None, [], {}],
        "payload": ["x", 1, None, [], True, [["a", 1]]],
        "affinityKey": [*WORDS, "x" * 256],
        "maxAttempts": [*COUNTS, 101, None],
        "queue": ["", "a b", "{x}", "a/b", ".", "x" * 129, "a\n", 1, [], {}],
        "idempotencyKey": [*WORDS, "x" * 256],
    },
    "cancel": {"reason": [*TEXTS, "x" * 1001]},
    "token": {
        "workerId": WORKERS,
        "description": [*TEXTS, "x" * 256],
        "allowedRepositories": ["a", {}, 1, [1], [""], ["a"], ["../b"], ["a/b", "https://u:p@h/a/b"]],
        "allowedJobTypes": LISTS,
        "capabilities": LISTS,
        "queues": LISTS,
        "maxConcurrency": [*COUNTS, 10_001],
        "expiresAt": ["", "x", "2000-01-01T00:00:00Z", 1, True, [], {}, "9999999-01-01"],
    },
    "claim": {
        "leaseSeconds": [*NUMBERS, 3601],
        "allowedTypes": LISTS,
        "workerCapabilities": LISTS,
        "waitSeconds": [-1, 50.5, 51, 10**9, "1", True, None, [], {}],
        "maxJobs": [*COUNTS, 101, None],
        "instanceId": [*WORDS, "x" * 129],
    },
    "heartbeat": {"leaseSeconds": [*NUMBERS, 3601], "leaseId": LEASES},
    "complete": {"resultSummary": TEXTS, "leaseId": LEASES},
    "fail": {
        "errorMessage": ["", " ", "\n", 1, None, True, [], {}, ABSENT],
        "retryable": [0, 1, "true", "", None, [], {}],
        "errorType": [*WORDS, "x" * 256],
        "traceback": [*TEXTS, "x" * (16 * 1024 + 1)],
        "retryAfterSeconds": [-1, 86_401, "1", True, [], {}],
        "leaseId": LEASES,
    },
    "release": {"reason": [*TEXTS, "x" * 1001], "leaseId": LEASES},
    "ack": {"message": [*TEXTS, "x" * 1001], "leaseId": LEASES},
    "events": {
        "level": ["", "debug", "INFO", 1, None, True, [], {}],
        "message": ["", " ", "\n\t", 1, True, [], {}, ABSENT],
        "payload": ["x", 1, True, []],
        "workerSeq": [-1, 2**53, 1.5, "1", True, [], {}],
        "events": [[], {}, "x", 1, ["x"], [{}], [{"message": " "}], [{"message": "x"}] * 101,
                   [{"message": "x", "level": "no"}], [[{"message": "x"}]], [None]],
        "leaseId": LEASES,
    },
    "hello": {
        "instanceId": [*WORDS, "x" * 129],
        "version": [*WORDS, "x" * 65],
        "types": LISTS,
        "capabilities": LISTS,
        "concurrency": [*COUNTS, 10_001],
    },
}  # fmt: skip
for _route in ("claim", "heartbeat", "complete", "fail", "release", "ack", "events", "hello"):
    BAD[_route]["workerId"] = [one for one in WORKERS if not (isinstance(one, str) and one)]

#: bodies that are JSON for nobody, and what they are told
UNREADABLE = {
    "nothing": b" ",
    "half": b'{"a": ',
    "more than one": b"{} {}",
    "comment": b"{} // x",
    "single quotes": b"{'a': 1}",
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "too large a number": b'{"a": 1e999}',
    "too large an integer": b'{"a": 9007199254740993}',
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "the same key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "deep": b"[" * 100_000,
    "deeper than it looks": b'{"a":' * 33 + b"1" + b"}" * 33,
    "a NUL": b'{"a": "x\\u0000y"}',
    "a NUL in a key": b'{"x\\u0000y": 1}',
    "a raw NUL": b'{"a": "\x00"}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "the other half": b'{"a": "\\uDC00x"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a BOM": b"\xef\xbb\xbf{}",
    "broken UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
}
NO_OBJECTS = [b"null", b"[]", b"1", b'"x"', b"true", b'[{"type": "t"}]']


@pytest.fixture
def held(user: Caller, worker: Caller) -> str:
    """Give the id of a job that the worker holds."""
    user.post("/jobs", {"type": "t"})
    return str(worker.job()["id"])


class Route:
    """One route with a job in its path."""

    def __init__(self, name: str, edge: Edge, user: Caller, worker: Caller, held: str) -> None:
        who, path = ROUTES[name][0].split()
        self.caller = user if who == "user" else worker
        self.path = path.replace("J", held)
        self.edge = edge
        edge.services.queue.seen("w1")

    def send(self, body: bytes, **headers: str) -> tuple[int, str]:
        """Post bytes and return what was said."""
        headers = {"Content-Type": "application/json"} | headers
        answer = self.caller.post(self.path, data=body, headers=headers)
        return answer.status_code, answer.json["detail"]["code"]


@pytest.fixture
def route(
    request: pytest.FixtureRequest, edge: Edge, user: Caller, worker: Caller, held: str
) -> Route:
    """Give a route by its name."""
    return Route(request.param, edge, user, worker, held)


every_route = pytest.mark.parametrize("route", ROUTES, indirect=True)


@both_databases
@pytest.mark.parametrize("route,name", [(n, n) for n in ROUTES], indirect=["route"])
def test_wrong_values(route: Route, name: str) -> None:
    before = route.edge.state()
    for field, values in BAD[name].items():
        for value in values:
            body = ROUTES[name][1] | {field: value}
            if value is ABSENT:
                del body[field]
            said = route.send(json.dumps(body).encode())
            # a list of types that a token does not name is no mistake but a wish too many
            assert said == (422, "invalid_queue_payload"), (field, value)
    assert route.edge.state() == before


@every_route
def test_what_is_no_json(route: Route) -> None:
    before = route.edge.state()
    for name, body in UNREADABLE.items():
        assert route.send(body) == (400, "malformed_json"), name
    for body in NO_OBJECTS:
        assert route.send(body) == (422, "invalid_queue_payload"), body
    assert route.edge.state() == before


@every_route
def test_what_is_no_plain_json_body(route: Route) -> None:
    before = route.edge.state()
    unsupported = (415, "unsupported_media_type")
    body = b'{"a": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", "x",
                 "application/json; charset=utf-16", "application/vnd.api+json"):  # fmt: skip
        assert route.send(body, **{"Content-Type": kind}) == unsupported, kind
    for coding in ("gzip", "deflate", "br", "identity, gzip"):
        assert route.send(body, **{"Content-Encoding": coding}) == unsupported, coding
    chunked = {"Transfer-Encoding": "chunked"}
    assert route.send(body, **chunked) == (411, "length_required")
    assert route.edge.state() == before


@every_route
def test_what_is_too_large(route: Route) -> None:
    before = route.edge.state()
    assert route.send(b'{"a": "' + b"x" * 2_000_000 + b'"}') == (413, "too_large")
    assert route.edge.state() == before


@pytest.mark.parametrize("route", ["create", "claim", "events"], indirect=True)
def test_a_refusal_repeats_nothing_of_the_request(route: Route) -> None:
    secret = "hunter2-hunter2"
    body = {"workerId": "w1", "type": [secret], "leaseSeconds": secret, "level": secret,
            "message": {secret: secret}, "events": [{secret: secret}] * 100}  # fmt: skip
    answer = route.caller.post(route.path, body)
    assert answer.status_code == 422
    assert secret not in answer.text
    assert len(answer.json["detail"]["errors"]) <= 20


@both_databases
@every_route
def test_what_a_newer_client_says_is_ignored(route: Route, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["route"]
    many = {f"new{n}": n for n in range(5000)}
    answer = route.caller.post(route.path, ROUTES[name][1] | many)
    # the job was not cancelled, so there is nothing to acknowledge
    assert answer.status_code in ({409} if name == "ack" else {200, 201})


def test_what_only_we_may_say_is_not_bound(user: Caller, worker: Caller, held: str) -> None:
    ours = {
        "fence": 99, "attempt": 9, "max_attempts": 9, "maxAttempts": 9, "state": "x",
        "status": "failed", "not_before": 0, "policy": {}, "claimedBy": "w9", "run": 7,
    }  # fmt: skip
    job = worker.say(held, "heartbeat", leaseSeconds=60, **ours).json
    assert (job["fence"], job["attempt"], job["status"], job["claimedBy"]) == (
        1,
        1,
        "running",
        "w1",
    )
    job = worker.say(held, "release", **ours).json
    assert (job["status"], job["maxAttempts"]) == ("queued", 3)


@pytest.mark.parametrize("key", ["", " ", "x" * 256])
def test_an_idempotency_key_is_a_word(edge: Edge, worker: Caller, key: str) -> None:
    body = {"workerId": "w1", "leaseSeconds": 60}
    answer = worker.post("/jobs/claim", body, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json["detail"]["code"]) == (422, "invalid_queue_payload")
