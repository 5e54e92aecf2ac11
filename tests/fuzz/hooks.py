"""What schemathesis is told of this API: jobs that are held, and what no schema can say.

Requests stay as they were made, right or wrong; only names that fit are exchanged for names of
things that exist, so that most calls reach the queue instead of a 404.
"""

import atexit
import hashlib
import json
import os
import re
from collections import Counter
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final

import requests
import schemathesis

URL: Final = os.environ["FUZZ_URL"]
TOKENS: Final[dict[str, str]] = json.loads(os.environ["FUZZ_TOKENS"])
TALLY: Final = Path(os.environ["FUZZ_TALLY"])
WORKER: Final = "w1"
OTHER_WORKER: Final = "w2"
PREFIX: Final = "/api/queue"
#: nothing here waits for longer
WAIT_S: Final = 0.02
WAIT_MAX_S: Final = 50
#: calls after which a job is still held
LIVES: Final = re.compile(r"heartbeat|events|artifacts")
#: refusals of what fits the schema, because no schema can say it
SENSE: Final = re.compile(
    # of any text and any number, however deep
    r"U\+0000 cannot be stored|An integer lies beyond|A number is too large|surrogate"
    # a moment that is none, such as the 30th of February, or lies behind us
    r"|cursor is not one that a listing gave|Not a moment|lies in the past"
    # no format of JSON Schema is a range of addresses, or a repository
    r"|ipRanges must be addresses|The repository is neither|allowedRepositories"
    # labels that end in a dot, or are devices
    r"|Not a relative name"
    # one value against another
    r"|do not have the digest|Names a job twice|Idempotency-Key|requiredCapabilities"
    r"|idempotencyKey was|was announced with"
    # limits that are a setting, or the size of something else
    r"|The artifact is larger|Celery's own states"
)

#: a header that nobody declared is nobody's business
UNDECLARED: Final = re.compile("in header - (all required|object with unexpected)")
BYTE: Final = b"x"
BYTE_DIGEST: Final = f"sha256:{hashlib.sha256(BYTE).hexdigest()}"
#: files of jobs have names of their own
_names = count()
#: cases of which so much was exchanged that what was made wrong may be right now
_mended: set[str] = set()
_held: list[dict[str, Any]] = []
_files: list[tuple[str, str]] = []
_tally: Counter[str] = Counter()
#: of eight chances one is left as it was made
_chance = cycle(range(8))
atexit.register(lambda: TALLY.write_text(json.dumps(_tally)))


def _call(kind: str, path: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {TOKENS[kind]}"}
    answer = requests.post(URL + PREFIX + path, json=body, headers=headers, timeout=60)
    assert answer.ok, answer.text
    return answer.json()


def _job() -> dict[str, Any]:
    """Return a job that the worker holds."""
    while not _held:
        _call("operator", "/jobs", {"type": "t", "priority": 2**31 - 1})
        claim = {"workerId": WORKER, "leaseSeconds": 3600}
        _held.extend(_call("worker", "/jobs/claim", claim)["jobs"])
    return _held[-1]


def _upload(job: dict[str, Any], *, sent: bool) -> str:
    """Return an upload of one byte in one part, announced and, if so wished, sent."""
    said = {"workerId": WORKER, "leaseId": job["leaseId"], "digest": BYTE_DIGEST}
    path = f"/jobs/{job['id']}/artifacts/uploads"
    begun = _call("worker", path, {**said, "name": f"n{next(_names)}", "sizeBytes": 1})
    if sent:
        headers = {"Authorization": f"Bearer {TOKENS['worker']}"}
        url = f"{URL}{PREFIX}{path}/{begun['id']}/parts/1"
        form = {"data": said, "files": {"file": BYTE}}
        answer = requests.post(url, headers=headers, timeout=60, **form)  # type: ignore[arg-type]
        assert answer.ok, answer.text
    return str(begun["id"])


def _exchange_upload(names: dict[str, Any], body: Any, job: dict[str, Any], path: str) -> None:
    """Speak of an upload that there is, and send what was announced."""
    names["upload_id"] = _upload(job, sent=path.endswith("/complete"))
    if names.get("number"):
        names["number"] = "1"
    if isinstance(body, dict) and _fits(body.get("digest"), r"sha256:[0-9a-f]{64}"):
        body["digest"] = BYTE_DIGEST
        if isinstance(body.get("file"), str | bytes):
            body["file"] = BYTE


def _fits(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _wait_less(where: object) -> None:
    if not isinstance(where, dict):
        return
    wait = where.get("waitSeconds")
    if isinstance(wait, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", wait):
        wait = float(wait)  # of a query
    if isinstance(wait, int | float) and WAIT_S < wait <= WAIT_MAX_S:
        where["waitSeconds"] = WAIT_S


def _exchange_job(case: Any, names: dict[str, Any]) -> None:
    """Speak of a job that is held, under its lease, or of a file that there is."""
    if "artifact_id" in names and _files and next(_chance):
        names["job_id"], names["artifact_id"] = _files[-1]
        return
    if not names.get("job_id") or not next(_chance):
        return
    job = _job()
    names["job_id"] = job["id"]
    if case.operation.path.endswith("/ack"):
        _call("operator", f"/jobs/{job['id']}/cancel", {})
    if names.get("upload_id"):
        _exchange_upload(names, case.body, job, case.operation.path)
        _mended.add(case.id)
    for said in (case.body, case.query):
        if isinstance(said, dict) and _fits(said.get("leaseId"), r"[A-Za-z0-9_-]{1,64}"):
            said["leaseId"] = job["leaseId"]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Exchange names before a request leaves."""
    _wait_less(case.query)
    _wait_less(case.body)
    names, body = case.path_parameters or {}, case.body
    signed = isinstance(body, dict) and "tokens" not in case.operation.path
    if signed and next(_chance) and _fits(body.get("workerId"), r"[A-Za-z0-9._-]{1,128}"):
        body["workerId"] = WORKER
    _exchange_job(case, names)
    if isinstance(body, dict) and "file" in body:
        body["file"] = body.pop("file")  # behind the fields that say what it is
    if names.get("token_id") in {token.split("_")[2] for token in TOKENS.values()}:
        names["token_id"] = "0" * 12  # nobody saws at his own branch
    if names.get("worker_id") == WORKER or (names.get("worker_id") and next(_chance)):
        names["worker_id"] = OTHER_WORKER


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the answer, and remember what there is now."""
    _tally[f"{case.method} {case.operation.path} {response.status_code}"] += 1
    if case.method != "POST":
        return
    if case.operation.path.endswith("/upload") and response.status_code == requests.codes.created:
        made = response.json()
        _files.append((made["jobId"], made["id"]))
    job_id = (case.path_parameters or {}).get("job_id")
    ended = job_id and not LIVES.search(case.operation.path)
    if ended or response.status_code in {404, 409}:
        _held[:] = [one for one in _held if one["id"] != job_id]


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Keep every failure but those that no description could keep from happening."""
    match type(failure).__name__:
        case "RejectedPositiveData":
            return response is None or not SENSE.search(response.text)
        case "AcceptedNegativeData":
            return case.id not in _mended and not UNDECLARED.search(failure.message)
        case _:
            return True
