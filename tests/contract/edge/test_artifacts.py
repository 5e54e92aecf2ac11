"""Files of jobs over HTTP: streamed in, named, and out again as nothing a browser may run."""

import hashlib
import io
from typing import Any

import pytest

from tests.contract.edge.conftest import Caller, Edge, MakeEdge

NOBODY = "00000000-0000-4000-8000-000000000000"
BOUNDARY = "----xyz"


@pytest.fixture
def held(user: Caller, worker: Caller) -> dict[str, Any]:
    """Give a job that the worker holds."""
    user.post("/jobs", {"type": "t"})
    return worker.job()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def upload(
    worker: Caller, job_id: str, data: bytes = b"hello", name: str = "logs/a.log", **fields: str
) -> Any:
    """Upload as a client does: fields first, then the file."""
    form = {"workerId": worker.worker_id, "name": name} | fields
    return worker.post(
        f"/jobs/{job_id}/artifacts/upload", data=form | {"file": (io.BytesIO(data), "x")}
    )


def send(worker: Caller, job_id: str, body: bytes, content_type: str | None = None) -> Any:
    """Upload exactly these bytes."""
    content_type = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    path = f"/jobs/{job_id}/artifacts/upload"
    return worker.post(path, data=body, headers={"Content-Type": content_type})


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["detail"]["code"]


def test_a_file_goes_in_and_comes_out(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    data = bytes(range(256)) * 1000 + b"\r\n--" + b"\r\n----xy"
    stored = upload(
        worker, held["id"], data, contentType="text/plain", digest=digest_of(data),
        leaseId=held["leaseId"],
    )  # fmt: skip
    assert stored.status_code == 201
    artifact = stored.json
    assert (artifact["name"], artifact["contentType"]) == ("logs/a.log", "text/plain")
    assert (artifact["sizeBytes"], artifact["digest"]) == (len(data), digest_of(data))
    assert (artifact["jobId"], artifact["attempt"], artifact["fence"]) == (held["id"], 1, 1)
    assert user.get(f"/jobs/{held['id']}/artifacts").json == {"items": [artifact]}
    got = user.get(f"/jobs/{held['id']}/artifacts/{artifact['id']}/download")
    assert (got.status_code, got.data) == (200, data)
    got.close()
    log = user.get(f"/jobs/{held['id']}/events").json["items"]
    assert log[-1]["message"] == "Artifact uploaded"


def test_a_browser_may_do_nothing_with_it(
    user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    for number, kind in enumerate(("text/html", "image/svg+xml", "application/xhtml+xml")):
        artifact = upload(worker, held["id"], name=f"{number}.html", contentType=kind).json
        got = user.get(f"/jobs/{held['id']}/artifacts/{artifact['id']}/download")
        assert got.headers["Content-Type"] == "application/octet-stream"
        assert got.headers["Content-Disposition"] == f"attachment; filename={number}.html"
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert got.headers["Content-Security-Policy"].startswith("sandbox")
        got.close()


def test_fields_may_follow_the_file(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    file = part("file", b"abc", '; filename="a"')
    fields = [part("workerId", b"w1"), part("name", b"a.txt")]
    body = form(file, *fields, part("digest", digest_of(b"abc").encode()))
    stored = send(worker, held["id"], body)
    assert (stored.status_code, stored.json["contentType"]) == (201, None)
    wrong = send(worker, held["id"], form(file, *fields, part("digest", digest_of(b"x").encode())))
    assert refusal(wrong) == (422, "invalid_queue_payload")


def test_the_same_file_twice_is_one(user: Caller, worker: Caller, held: dict[str, Any]) -> None:
    first = upload(worker, held["id"])
    again = upload(worker, held["id"])
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json == again.json
    other = upload(worker, held["id"], b"other bytes")
    assert refusal(other) == (409, "artifact_conflict")
    assert user.get(f"/jobs/{held['id']}/artifacts").json["items"] == [first.json]


@pytest.mark.parametrize(
    "digest",
    [digest_of(b"other"), "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:", "x", "",
     digest_of(b"hello").upper(), digest_of(b"hello") + "\n"],
)  # fmt: skip
def test_a_wrong_digest_leaves_nothing(
    edge: Edge, worker: Caller, held: dict[str, Any], digest: str
) -> None:
    before = edge.state()
    assert refusal(upload(worker, held["id"], digest=digest)) == (422, "invalid_queue_payload")
    assert edge.state() == before


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../b", "..\\x", "C:x", ".", "..", "", "x" * 300, "a\0b", "a\nb",
     "con", "a/NUL.txt", "\u202egpj", "a.", "a ", " a", "a//b", "a/", "a/b/c/d/e", ".git/config",
     "~x", "a..b", "-x"],
)  # fmt: skip
def test_a_name_is_a_label_and_no_path(
    edge: Edge, worker: Caller, held: dict[str, Any], name: str
) -> None:
    rows, keys, _ = edge.state()
    answer = upload(worker, held["id"], name=name)
    assert refusal(answer) == (422, "invalid_queue_payload")
    # the bytes may lie in the store under their own digest, which no client chose; prune takes them
    assert edge.state()[:2] == (rows, keys)


def test_strangers_bytes_do_not_reach_the_disk(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    other = edge.worker("w2")
    edge.services.queue.seen("w2")
    queued = user.post("/jobs", {"type": "t"}).json["id"]
    before = edge.state()
    assert refusal(upload(other, held["id"])) == (403, "worker_not_authorized")
    assert refusal(upload(other, held["id"], workerId="w1")) == (403, "worker_not_authorized")
    assert refusal(upload(worker, queued)) == (409, "job_state_conflict")
    assert refusal(upload(worker, NOBODY)) == (404, "job_not_found")
    assert refusal(upload(worker, "x")) == (404, "job_not_found")
    assert edge.state() == before
    stale = upload(worker, held["id"], leaseId="0" * 32)
    assert refusal(stale) == (409, "lease_lost")


def test_the_order_of_checks(edge: Edge, worker: Caller, held: dict[str, Any]) -> None:
    path = f"/jobs/{NOBODY}/artifacts/upload"
    stranger = edge.stranger().post(path, data=b"x", content_type="text/plain")
    assert refusal(stranger) == (401, "worker_auth_failed")
    assert refusal(send(worker, NOBODY, b"x", "text/plain")) == (415, "unsupported_media_type")
    assert refusal(send(worker, NOBODY, b"x")) == (400, "malformed_form")
    name = upload(worker, NOBODY, name="..", workerId="w2")
    assert refusal(name) == (403, "worker_not_authorized")
    assert refusal(upload(worker, NOBODY, name="..")) == (422, "invalid_queue_payload")
    assert refusal(upload(worker, NOBODY)) == (404, "job_not_found")


FILE = part("file", b"abc", '; filename="a"')
FIELDS = part("workerId", b"w1") + part("name", b"a.txt")


@pytest.mark.parametrize(
    "body,status",
    [
        (b"\r\n", 400),
        (b"--", 400),
        (FILE + FIELDS, 400),  # no end
        (form(FILE, FIELDS)[:-9], 400),
        (form(FIELDS, FILE)[:60], 400),
        (b"x" * 600_000, 400),  # no boundary at all
        (form(FIELDS, f"--{BOUNDARY}\r\nX: y\r\n\r\nv\r\n".encode()), 400),  # no disposition
        (form(FILE, part("workerId", b"w1"), part("name", b"\xff\xfe")), 400),
        (form(FILE, part("workerId", b"w1"), part("name", b"x" * 9000)), 400),
        (form(FILE, *[part("a", b"b")] * 40), 400),
        (form(FILE, part("name", b"a.txt")), 422),  # no workerId
        (form(FILE, part("workerId", b"w1")), 422),  # no name
        (form(FIELDS), 422),  # no file
        (form(FIELDS, part("file", b"abc")), 422),  # a field called file
        (form(), 422),
        (form(FIELDS, FILE, FILE), 201),  # the first counts
        (b"preamble\r\n" + form(FIELDS, FILE) + b"epilogue", 201),
    ],
)
def test_what_is_no_form_is_refused(
    edge: Edge, worker: Caller, held: dict[str, Any], body: bytes, status: int
) -> None:
    before = edge.state()
    assert send(worker, held["id"], body).status_code == status
    if status != 201:
        assert edge.state()[:2] == before[:2]


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "multipart/form-data", "multipart/form-data; boundary=",
     "multipart/form-data; boundary=" + "x" * 201, "text/plain", "multipart/mixed; boundary=x"],
)  # fmt: skip
def test_what_is_announced_as_no_form_is_refused(
    worker: Caller, held: dict[str, Any], content_type: str
) -> None:
    answer = send(worker, held["id"], form(FIELDS, FILE), content_type)
    assert refusal(answer) == (415, "unsupported_media_type")


def test_a_file_has_a_limit(make_edge: MakeEdge, sqlite_url: str) -> None:
    edge = make_edge(sqlite_url, queue={"artifact_max_bytes": 1000})
    user, worker = edge.user(), edge.worker()
    user.post("/jobs", {"type": "t"})
    job_id = worker.job()["id"]
    before = edge.state()
    assert refusal(upload(worker, job_id, b"x" * 1001)) == (413, "artifact_too_large")
    announced = upload(worker, job_id, b"x" * 200_000)
    assert refusal(announced) == (413, "artifact_too_large")
    assert edge.state() == before
    assert upload(worker, job_id, b"x" * 1000).status_code == 201


def test_a_full_disk_is_said(
    edge: Edge, worker: Caller, held: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = edge.state()
    with monkeypatch.context() as patch:
        # the one call that a full disk fails first
        patch.setattr("broker.files.os.fsync", _full)
        assert refusal(upload(worker, held["id"])) == (507, "storage_full")
    assert edge.state() == before
    assert upload(worker, held["id"]).status_code == 201


def _full(_number: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def download(user: Caller, worker: Caller, held: dict[str, Any]) -> str:
    """Give the path of a stored file of 1000 bytes."""
    artifact = upload(worker, held["id"], bytes(range(250)) * 4).json
    return f"/jobs/{held['id']}/artifacts/{artifact['id']}/download"


@pytest.mark.parametrize("asked,status,length",
    [
        ("bytes=0-9", 206, 10), ("bytes=990-", 206, 10), ("bytes=-10", 206, 10),
        ("bytes=0-0", 206, 1), ("bytes=0-5000", 206, 1000), ("bytes=5-4", 416, None),
        ("bytes=1000-", 416, None), ("bytes=" + "9" * 400 + "-", 416, None),
        ("bytes=0-1,5-6", 416, None), ("bytes=" + ",".join(["0-1"] * 2000), 416, None),
        ("rows=0-9", 416, None), ("x", 416, None),
    ],
)  # fmt: skip
def test_one_range_may_be_asked_for(
    user: Caller, download: str, asked: str, status: int, length: int | None
) -> None:
    got = user.get(download, headers={"Range": asked})
    assert got.status_code == status
    if length is not None:
        assert len(got.data) == length
    got.close()


def test_an_artifact_of_another_job_is_told_from_none(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any], download: str
) -> None:
    other = user.post("/jobs", {"type": "t"}).json["id"]
    foreign = user.get(download.replace(held["id"], other))
    assert refusal(foreign) == (409, "artifact_job_mismatch")
    for name in (NOBODY, "x", "%00", "..%2f"):
        absent = user.get(f"/jobs/{held['id']}/artifacts/{name}/download")
        assert absent.status_code == 404
    assert refusal(edge.worker("w2").get(download)) == (403, "worker_not_authorized")


def test_a_lost_file_is_not_found(edge: Edge, user: Caller, download: str) -> None:
    folder = edge.services.settings.stores.artifacts_dir
    for file in folder.rglob("sha256/*/*"):
        file.unlink()
    assert refusal(user.get(download)) == (404, "artifact_not_found")
