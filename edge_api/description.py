"""The only one to know what openapi.json says beyond the shape of each field.

Which refusals a route may give, which call follows from which, and what must be said in one of
two ways. Refusals follow from what a route takes, so that a new route has them by itself; what
only one route may say is in ``BESIDES``, and an answer that is not described fails a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from edge_api.smorest import PREFIX

#: the status of every refusal, and what it says
REFUSALS: Final[Mapping[int, str]] = {
    400: "Not a request, or not the JSON or form that every reader understands alike",
    401: "No credential that is good",
    403: "A good credential that does not allow this",
    404: "No such thing, or none that the caller may know of",
    408: "The request did not come in for too long",
    409: "Not in the state, or not under the holder, that allows this",
    411: "A body without Content-Length",
    412: "Not what If-Match asks for",
    413: "A body or a file that is too large, or more than its job or worker may store",
    414: "A request line that is too long",
    415: "A body of another type than this route takes",
    416: "A range that the file does not have",
    417: "An Expect that is not 100-continue",
    422: "A request that does not fit the contract; errors names its fields",
    429: "Too many calls",
    431: "Headers that are too large or too many",
    501: "An unknown Transfer-Encoding",
    503: "A store does not answer, or all places for such calls are taken",
    507: "The store of the files is full",
}
#: what may happen before a route is looked at
ANYWHERE: Final = frozenset({400, 408, 414, 417, 431, 501, 503})
GUARDED: Final = frozenset({401, 403, 429})
JSON_BODY: Final = frozenset({411, 413, 415, 422})
FORM_BODY: Final = frozenset({413, 415, 422, 507})

_JOB: Final = f"{PREFIX}/jobs/{{job_id}}"
_CLAIM: Final = f"{PREFIX}/jobs/claim"
_TOKEN: Final = f"{PREFIX}/workers/tokens/{{token_id}}"
_DOWNLOAD: Final = f"{_JOB}/artifacts/{{artifact_id}}/download"
_UPLOAD: Final = f"{_JOB}/artifacts/uploads/{{upload_id}}"
_HOLDERS: Final = ("heartbeat", "complete", "fail", "release", "cancel/ack", "events")
_WATCHED: Final = ("", "/why", "/events", "/artifacts", "/attempts")

#: refusals that do not follow from what a route takes
BESIDES: Final[Mapping[tuple[str, str], frozenset[int]]] = {
    **{("post", f"{_JOB}/{call}"): frozenset({409}) for call in _HOLDERS},
    ("post", f"{_JOB}/artifacts/upload"): frozenset({409}),
    ("post", f"{_JOB}/artifacts/uploads"): frozenset({409}),
    ("get", _UPLOAD): frozenset({409}),
    ("post", f"{_UPLOAD}/parts/{{number}}"): frozenset({409}),
    ("post", f"{_UPLOAD}/complete"): frozenset({409, 507}),
    ("post", f"{_JOB}/cancel"): frozenset({409}),
    ("post", f"{_TOKEN}/rotate"): frozenset({409}),
    ("get", _DOWNLOAD): frozenset({409, 412, 416}),
}
_RETRY: Final = {
    "Retry-After": {
        "required": True,
        "schema": {"type": "integer"},
        "description": "seconds to wait before the next try",
    }
}
HEADERS: Final[Mapping[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: _RETRY,
    503: _RETRY,
}
_BYTES: Final = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
#: good answers beside the one that a route's view gives by itself
GOOD: Final[Mapping[tuple[str, str], dict[str, Any]]] = {
    ("get", _DOWNLOAD): {
        "206": {"description": "The range that was asked for", **_BYTES},
        "304": {"description": "What the caller has already, by its ETag"},
    }
}


def _given(name: str, other: str, kind: str, *, alone: bool) -> dict[str, Any]:
    """Say that one of two fields is there, and with ``alone`` that the other one is not."""
    said = {name: {"type": kind}} | ({other: {"type": "null"}} if alone else {})
    return {"required": [name], "properties": said}


#: what one field alone cannot say of a request
TOGETHER: Final[Mapping[str, dict[str, Any]]] = {
    "AppendEventsArgs": {
        "anyOf": [
            _given("message", "events", "string", alone=False),
            _given("events", "message", "array", alone=False),
        ]
    },
    "RedriveArgs": {
        "anyOf": [
            _given("ids", "filter", "array", alone=True),
            _given("filter", "ids", "object", alone=True),
        ]
    },
}

#: what a holder's calls take from the claim that made it one
_HELD: Final = {
    "workerId": "$request.body#/workerId",
    "leaseId": "$response.body#/job/leaseId",
}


def _links() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield which answer (method, path, status) leads to which call."""
    made = {"job_id": "$response.body#/id"}
    jobs = ("post", f"{PREFIX}/jobs", "201")
    for call in _WATCHED:
        yield *jobs, _link("get", f"{_JOB}{call}", made)
    yield *jobs, _link("post", f"{_JOB}/cancel", made)
    held = {"job_id": "$response.body#/job/id"}
    for call in (*_HOLDERS, "artifacts/upload", "artifacts/uploads"):
        yield "post", _CLAIM, "200", _link("post", f"{_JOB}/{call}", held, _HELD)
    yield "post", _CLAIM, "200", _link("post", f"{_JOB}/cancel", held)
    file = {"job_id": "$response.body#/jobId", "artifact_id": "$response.body#/id"}
    yield "post", f"{_JOB}/artifacts/upload", "201", _link("get", _DOWNLOAD, file)
    begun = {"job_id": "$response.body#/jobId", "upload_id": "$response.body#/id"}
    yield "post", f"{_JOB}/artifacts/uploads", "201", _link("get", _UPLOAD, begun)
    yield "post", f"{_JOB}/artifacts/uploads", "201", _link("post", f"{_UPLOAD}/complete", begun)
    begun = {"job_id": "$response.body#/jobId", "upload_id": "$response.body#/id"}
    announced = ("post", f"{_JOB}/artifacts/uploads", "201")
    yield *announced, _link("get", _UPLOAD, begun)
    yield *announced, _link("post", f"{_UPLOAD}/complete", begun, {"workerId": _HELD["workerId"]})
    again = {"ids": ["$response.body#/id"]}
    redrive = f"{PREFIX}/dead-letters/redrive"
    yield "post", f"{_JOB}/fail", "200", _link("post", redrive, {}, again)
    tokens = ("post", f"{PREFIX}/workers/tokens", "201")
    token = {"token_id": "$response.body#/workerToken/id"}
    for call in ("rotate", "revoke"):
        yield *tokens, _link("post", f"{_TOKEN}/{call}", token)
    named = {"worker_id": "$response.body#/workerToken/workerId"}
    for call in ("drain", "resume", "concurrency", "pause", "unpause"):
        yield *tokens, _link("post", f"{PREFIX}/workers/{{worker_id}}/{call}", named)


def _link(
    method: str, path: str, parameters: dict[str, str], body: dict[str, Any] | None = None
) -> dict[str, Any]:
    pointer = path.replace("~", "~0").replace("/", "~1")
    link: dict[str, Any] = {"operationRef": f"#/paths/{pointer}/{method}"}
    if parameters:
        link["parameters"] = parameters
    return link if body is None else link | {"requestBody": body}


def complete(document: dict[str, Any]) -> None:
    """Add to a description what its schemas do not say."""
    schemas, responses = document["components"]["schemas"], document["components"]["responses"]
    responses.clear()
    for name, said in TOGETHER.items():
        schemas[name].update(said)
    for path, method, operation in _operations(document):
        _read_as_text(operation)
        operation["responses"] |= GOOD.get((method, path), {})
        for status in sorted(_refusals(path, method, operation)):
            operation["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
            responses[str(status)] = _refusal(status)
    for method, path, success, link in _links():
        answer = document["paths"][path][method]["responses"][success]
        *_, name, _ = re.split("/|~1", link["operationRef"])
        answer.setdefault("links", {})[name.strip("{}")] = link


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method != "parameters":
                yield path, method, operation


def _read_as_text(operation: dict[str, Any]) -> None:
    """Take null out of what comes as text in a query or a header, where nobody can say it."""
    for parameter in operation.get("parameters", ()):
        schema = cast(dict[str, Any], parameter["schema"])
        if isinstance(schema.get("type"), list):
            schema["type"] = next(one for one in schema["type"] if one != "null")
        if "default" in schema and schema["default"] is None:
            del schema["default"]


def _refusals(path: str, method: str, operation: dict[str, Any]) -> frozenset[int]:
    found = ANYWHERE | BESIDES.get((method, path), frozenset())
    if operation["security"]:
        found |= GUARDED
    if "{" in path:
        found |= {404}
    if operation.get("parameters"):
        found |= {422}
    body = operation.get("requestBody", {}).get("content", {})
    if "application/json" in body:
        found |= JSON_BODY
    if "multipart/form-data" in body:
        found |= FORM_BODY
    return found


def _refusal(status: int) -> dict[str, Any]:
    said: dict[str, Any] = {
        "description": REFUSALS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return said | ({"headers": HEADERS[status]} if status in HEADERS else {})
