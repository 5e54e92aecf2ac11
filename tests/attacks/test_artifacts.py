"""Attacks by files: names that are paths, bytes not as announced, and more than there is room."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker import files
from tests.attacks.conftest import Caller, Edge, MakeEdge, refusal, unchanged

TOO_LARGE = (413, "artifact_too_large")
INVALID = (422, "invalid_queue_payload")
KIB = 1024


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def upload(worker: Caller, job_id: str, data: bytes, name: str = "a.log", **fields: str) -> Any:
    form = {"workerId": worker.worker_id, "name": name} | fields
    path = f"/jobs/{job_id}/artifacts/upload"
    return worker.post(path, data=form | {"file": (io.BytesIO(data), "x")})


def holding(edge: Edge, worker: Caller) -> str:
    edge.user().post("/jobs", {"type": "t"})
    job: str = worker.job()["id"]
    return job


def named(edge: Edge, job_id: str) -> list[int]:
    items = edge.user().get(f"/jobs/{job_id}/artifacts").json["items"]
    return [item["sizeBytes"] for item in items]


@pytest.fixture
def job(edge: Edge, worker: Caller) -> str:
    """Give a job that w1 holds, taken up."""
    job_id = holding(edge, worker)
    worker.say(job_id, "heartbeat", leaseSeconds=60)
    return job_id


@pytest.mark.attack(81)
@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../b", "..\\x", "a\\..\\b", "C:x", "C:\\x", ".", "..", "", "a//b",
     "a/", "/", "x" * 300, "a/b/c/d/e", "a\x00b", "a\nb", "a\r\nX-Evil: b", "con", "CON.txt",
     "aux.log", "a\u202ecod.exe", "a.", "a ", " a", "~/a", "$HOME", "%2e%2e/x",
     "a/.git/config", "-rf", "\uff41"],
)  # fmt: skip
def test_names_that_are_more_than_labels(edge: Edge, worker: Caller, job: str, name: str) -> None:
    def rows() -> object:
        return edge.state()[0]  # type: ignore[index]

    before, folder = rows(), edge.services.settings.stores.artifacts_dir
    assert refusal(upload(worker, job, b"evil", name)) == INVALID
    assert rows() == before
    # what was received lies under its digest, without a name, and is swept
    assert {path.name for path in folder.rglob("*") if path.is_file()} <= {
        "lock", digest_of(b"evil").removeprefix("sha256:"),
    }  # fmt: skip


@pytest.mark.attack(82)
@pytest.mark.parametrize(
    "digest", [digest_of(b"other"), digest_of(b"x").upper(), "md5:" + "0" * 32, "sha256:", "0" * 64]
)
def test_other_bytes_than_announced(edge: Edge, worker: Caller, job: str, digest: str) -> None:
    with unchanged(edge):
        assert refusal(upload(worker, job, b"x", digest=digest)) == INVALID


@pytest.mark.attack(84)
def test_other_bytes_under_a_name_that_is_taken(edge: Edge, worker: Caller, job: str) -> None:
    first = upload(worker, job, b"first")
    assert upload(worker, job, b"first").json == first.json
    assert refusal(upload(worker, job, b"other")) == (409, "artifact_conflict")
    assert named(edge, job) == [5]


@pytest.mark.attack(85)
@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml"])
def test_a_page_that_would_like_to_be_run(
    edge: Edge, user: Caller, worker: Caller, job: str, kind: str
) -> None:
    page = b"<script>alert(1)</script>"
    made = upload(worker, job, page, "a.html", contentType=kind).json
    got = user.get(f"/jobs/{job}/artifacts/{made['id']}/download")
    assert got.data == page
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Disposition"].startswith("attachment")
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Content-Security-Policy"].startswith("sandbox")
    got.close()


@pytest.mark.attack(87)
@pytest.mark.parametrize(
    "ranges,status",
    [
        ("bytes=0-1", 206),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(2000)), 416),
        ("bytes=5-2", 200),
        ("bytes=100-", 416),
        ("bytes=" + "9" * 400 + "-", 416),
        ("lines=1-2", 200),
        ("bytes=-", 200),
    ],
)
def test_ranges(
    edge: Edge, user: Caller, worker: Caller, job: str, ranges: str, status: int
) -> None:
    made = upload(worker, job, b"0123456789").json
    with unchanged(edge):
        path = f"/jobs/{job}/artifacts/{made['id']}/download"
        got = user.get(path, headers={"Range": ranges})
    assert got.status_code in {status, 200, 416}
    assert len(got.data) <= 2048
    assert (got.status_code == 206) == (status == 206)
    got.close()


@pytest.mark.attack(89)
def test_one_file_too_many(make_edge: MakeEdge, sqlite_url: str) -> None:
    edge = make_edge(sqlite_url, queue={"artifacts_per_job": 3})
    worker = edge.worker()
    job = holding(edge, worker)
    stored = [upload(worker, job, b"x", f"{n}.log") for n in range(3)]
    with unchanged(edge):
        assert refusal(upload(worker, job, b"x", "3.log")) == TOO_LARGE
        # a repeat whose answer was lost is no new file
        assert upload(worker, job, b"x", "2.log").json == stored[2].json


@pytest.mark.attack(89)
def test_one_byte_too_many(make_edge: MakeEdge, sqlite_url: str) -> None:
    edge = make_edge(sqlite_url, queue={"artifact_bytes_per_job": 10})
    worker = edge.worker()
    job = holding(edge, worker)
    assert upload(worker, job, b"0123456789", "a").status_code == 201
    with unchanged(edge):
        assert refusal(upload(worker, job, b"x", "b")) == TOO_LARGE
    other = holding(edge, worker)
    with_room = upload(worker, other, b"x" * 11, "a")
    assert refusal(with_room) == TOO_LARGE
    assert upload(worker, other, b"x" * 10, "a").status_code == 201


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give eight threads."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.mark.attack(89)
@pytest.mark.parametrize("edge_on", ["sqlite", pytest.param("postgresql",
                         marks=pytest.mark.postgres)])  # fmt: skip
def test_uploads_that_race_for_the_last_bytes(
    request: pytest.FixtureRequest, make_edge: MakeEdge, threads: ThreadPoolExecutor, edge_on: str
) -> None:
    url = request.getfixturevalue(
        f"{'sqlite_url' if edge_on == 'sqlite' else 'postgres_ledger_url'}"
    )
    edge = make_edge(url, queue={"artifact_bytes_per_worker": 35 * KIB})
    worker = edge.worker()
    jobs = [holding(edge, worker) for _ in range(4)]
    answers = threads.map(
        lambda n: upload(worker, jobs[n % 4], b"%d" % n + b"x" * (10 * KIB - 1), f"{n}"), range(8)
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] * 3 + [413] * 5
    assert sum(size for job in jobs for size in named(edge, job)) == 30 * KIB


@pytest.mark.attack(90)
def test_a_disk_that_fills_up_meanwhile(
    edge: Edge, worker: Caller, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    before = edge.state()
    monkeypatch.setattr(files.os, "fsync", full)
    assert refusal(upload(worker, job, b"x")) == (507, "storage_full")
    monkeypatch.undo()
    folder = Path(edge.services.settings.stores.artifacts_dir)
    assert not list(folder.glob("tmp/*"))
    assert edge.state() == before
    assert upload(worker, job, b"x").status_code == 201


def test_who_asks_for_another_version_gets_none(
    edge: Edge, user: Caller, worker: Caller, job: str
) -> None:
    made = upload(worker, job, b"these bytes").json
    path = f"/jobs/{job}/artifacts/{made['id']}/download"
    with unchanged(edge):
        refused = user.get(path, headers={"If-Match": '"another"'})
        assert refusal(refused) == (412, "precondition_failed")
        assert b"bytes" not in refused.data
        etag = made["digest"].removeprefix("sha256:")
        for header, status in (("If-Match", 200), ("If-None-Match", 304)):
            with user.get(path, headers={header: f'"{etag}"'}) as answer:
                assert answer.status_code == status
                assert answer.data == (b"these bytes" if status == 200 else b"")
