"""An edge whose files lie in a bucket: as from a folder; and without the bucket it says 503."""

import hashlib
import io
import logging
from datetime import timedelta
from typing import Any

import pytest

from broker.upkeep import Upkeep
from tests.buckets import SECRET
from tests.contract.edge.conftest import Caller, Edge, MakeEdge
from tests.contract.edge.test_artifacts import digest_of, refusal, upload
from tests.contract.edge.test_uploads import begin, finish, send, small_parts
from tests.contract.test_storage import bucket, s3
from tests.services import free_port

__all__ = ["bucket", "s3", "small_parts"]
DATA = bytes(range(256)) * 9 + b"the rest"


@pytest.fixture
def edge(make_edge: MakeEdge, sqlite_url: str, bucket: str) -> Edge:
    """Give an edge with a bucket."""
    return make_edge(sqlite_url, artifacts_url=bucket)


def held(edge: Edge, worker: Caller) -> dict[str, Any]:
    edge.user().post("/jobs", {"type": "t"})
    job = worker.job()
    worker.say(job["id"], "heartbeat", leaseSeconds=60)
    return job


def test_files_go_in_come_out_and_are_forgotten(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    worker, user = edge.worker(), edge.user()
    job = held(edge, worker)
    stored = upload(worker, job["id"], DATA, digest=digest_of(DATA), contentType="text/html")
    assert stored.status_code == 201
    assert upload(worker, job["id"], DATA).json == stored.json
    assert refusal(upload(worker, job["id"], b"other")) == (409, "artifact_conflict")
    path = f"/jobs/{job['id']}/artifacts/{stored.json['id']}/download"
    got = user.get(path)
    assert got.data == DATA
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Disposition"].startswith("attachment")
    assert got.headers["Content-Security-Policy"].startswith("sandbox")
    for asked, part in (("bytes=2000-2009", DATA[2000:2010]), ("bytes=-8", b"the rest")):
        ranged = user.get(path, headers={"Range": asked})
        assert (ranged.status_code, ranged.data) == (206, part)
    assert user.get(path, headers={"Range": "bytes=9999-"}).status_code == 416
    begun = begin(worker, job).json
    for number in (1, 2, 3):
        send(worker, job, begun, number)
    whole = finish(worker, job, begun)
    assert (whole.status_code, whole.json["digest"]) == (201, digest_of(DATA))
    worker.say(job["id"], "complete", leaseId=job["leaseId"])
    queue, files = edge.services.queue, edge.services.artifacts
    later = queue.clock.now() + timedelta(days=40)
    monkeypatch.setattr(queue.clock, "now", lambda: later)
    removed = Upkeep(queue).prune(files=files)
    assert (removed["artifacts"], removed["uploads"]) == (2, 1)
    # the other bytes that got no name too; around midnight the same bytes are two objects
    assert removed["files"] in {2, 3}
    assert list(files.stored(before=later)) == list(files.uploads(before=later)) == []
    assert SECRET not in caplog.text
    assert "Signature" not in caplog.text


def test_an_outage_is_503_and_nothing_else_stops(
    edge: Edge,
    make_edge: MakeEdge,
    sqlite_url: str,
    bucket: str,
) -> None:
    worker, user = edge.worker(), edge.user()
    job = held(edge, worker)
    stored = upload(worker, job["id"], DATA).json
    begun = begin(worker, job, name="big.log").json
    away = bucket.rpartition(":")[0] + f":{free_port()}"
    cut = make_edge(sqlite_url, artifacts_url=away)
    alone, reader = (Caller(cut.app, one.headers, one.worker_id) for one in (worker, user))
    unavailable = (503, "unavailable")
    assert refusal(upload(alone, job["id"], b"x", "b.log")) == unavailable
    assert refusal(send(alone, job, begun, 1)) == unavailable
    path = f"/jobs/{job['id']}/artifacts/{stored['id']}/download"
    assert refusal(reader.get(path)) == unavailable
    assert reader.get(f"/jobs/{job['id']}/artifacts").json["items"] == [stored]
    assert alone.say(job["id"], "heartbeat", leaseSeconds=60).status_code == 200
    for number in (1, 2, 3):
        send(worker, job, begun, number)
    assert refusal(finish(alone, job, begun)) == unavailable
    # once it is back, what was there is there
    assert finish(worker, job, begun).status_code == 201
    assert alone.say(job["id"], "complete", leaseId=job["leaseId"]).status_code == 200


def test_what_is_stored_is_what_was_announced(edge: Edge) -> None:
    worker = edge.worker()
    job = held(edge, worker)
    wrong = upload(worker, job["id"], b"x", digest="sha256:" + hashlib.sha256(b"y").hexdigest())
    assert refusal(wrong) == (422, "invalid_queue_payload")
    form = {"workerId": "w1", "name": "cut", "file": (io.BytesIO(b"x" * 100), "x")}
    assert worker.post(f"/jobs/{job['id']}/artifacts/upload", data=form).status_code == 201
    stranger = edge.worker("w2")
    assert refusal(upload(stranger, job["id"], b"x")) == (403, "worker_not_authorized")
    assert len(list(edge.services.artifacts.stored(before=edge.services.clock.now()
                                                   + timedelta(days=9)))) == 1  # fmt: skip
