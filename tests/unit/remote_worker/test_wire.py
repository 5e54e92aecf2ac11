"""What counts as an answer, and what is sent."""

import contextlib
import json
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from remote_worker.artifacts import seal
from remote_worker.errors import Refused, Unanswered
from remote_worker.job import Event, Job
from remote_worker.settings import TokenFile
from remote_worker.wire import Identity, Wire
from tests.unit.remote_worker.edge import (
    TOKEN,
    WORKER,
    Answer,
    FakeEdge,
    Shown,
    error_page,
    refusal,
)


def claim(wire: Wire, *, key: str = "k", max_jobs: int = 1) -> list[Job]:
    return wire.claim(
        key=key, types=["codex_exec"], capabilities=["git"], lease_s=60, wait_s=0, max_jobs=max_jobs
    )


def test_a_claim_says_who_asks_for_what(wire: Wire, edge: FakeEdge) -> None:
    held = edge.offer(instruction="do it")
    [job] = claim(wire)
    assert (job.id, job.lease_id, job.fence) == (held.job["id"], held.job["leaseId"], 7)
    [call] = edge.asked("/claim")
    assert call.headers["Idempotency-Key"] == "k"
    assert re.fullmatch(r"\d+\.\d\d(,\d+\.\d\d){2}", call.headers["Bridge-Load"])
    assert call.headers["Authorization"] == f"Bearer {TOKEN}"
    assert call.body == {
        "workerId": WORKER,
        "instanceId": "instance-1",
        "leaseSeconds": 60,
        "allowedTypes": ["codex_exec"],
        "workerCapabilities": ["git"],
        "waitSeconds": 0,
        "maxJobs": 1,
    }


def test_an_empty_queue_is_an_answer(wire: Wire) -> None:
    assert claim(wire) == []


def test_an_edge_without_batches_grants_one(wire: Wire, edge: FakeEdge) -> None:
    job = {"id": "j1", "type": "t", "payload": {}, "attempt": 1}
    edge.instead("/claim", Answer(body=json.dumps({"job": job}).encode()))
    [granted] = claim(wire)
    assert (granted.id, granted.lease_id, granted.fence, granted.defect) == ("j1", None, None, None)


@pytest.mark.parametrize(
    "answer",
    [
        error_page(200),
        error_page(404),
        error_page(409),
        error_page(401),
        error_page(502),
        Answer(body=b'{"job": nu'),
        Answer(body=b"[]"),
        Answer(body=b"{}"),
        Answer(body=b'{"job": NaN}'),
        Answer(body=b"[" * 200_000),
        Answer(body=b'{"job": {"id": "../../etc"}}'),
        Answer(body=b'{"job": null, "jobs": [3]}'),
        Answer(404, b'{"error": "no route"}'),
        Answer(307, b"{}", (("Location", "http://127.0.0.1:1/"),)),
        refusal(408, "timeout"),
        refusal(425, "early"),
        refusal(429, "rate_limited"),
        refusal(503, "unavailable"),
        Answer(cut=True),
    ],
    ids=lambda a: f"{a.status}-{a.body[:20].decode()}",
)
def test_what_is_not_the_edges_word_is_no_answer(
    wire: Wire, edge: FakeEdge, answer: Answer
) -> None:
    edge.instead("/claim", answer)
    with pytest.raises(Unanswered):
        claim(wire)


def test_no_redirect_takes_the_token_away(wire: Wire, edge: FakeEdge) -> None:
    with FakeEdge() as other:
        edge.instead("/claim", Answer(307, b"{}", (("Location", f"{other.url}/api/queue/x"),)))
        with pytest.raises(Unanswered):
            claim(wire)
        assert other.calls == []


@pytest.mark.parametrize(
    "status,code", [(401, "worker_auth_failed"), (403, "worker_not_authorized"), (422, "x")]
)
def test_a_refusal_is_final_and_has_a_code(
    wire: Wire, edge: FakeEdge, status: int, code: str
) -> None:
    edge.instead("/claim", refusal(status, code))
    with pytest.raises(Refused) as no:
        claim(wire)
    assert (no.value.status, no.value.code) == (status, code)


def test_another_token_is_refused(edge: FakeEdge) -> None:
    who = Identity(worker_id=WORKER, instance_id="i", version="1")
    with pytest.raises(Refused, match="401"):
        claim(Wire(edge.url, token=Shown("wrong"), identity=who))


@pytest.mark.parametrize(
    "value,low,high",
    [
        ("7", 7, 7),
        ("-3", 0, 0),
        ("soon", 0, 0),
        ("nan", 0, 0),
        ("99999", 600, 600),
        ("date", 20, 30),
    ],
)
def test_retry_after(wire: Wire, edge: FakeEdge, value: str, low: float, high: float) -> None:
    if value == "date":
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    edge.instead("/claim", Answer(503, b"", (("Retry-After", value),)))
    with pytest.raises(Unanswered) as error:
        claim(wire)
    assert low <= error.value.retry_after_s <= high


def test_nobody_there_is_no_answer() -> None:
    who = Identity(worker_id=WORKER, instance_id="i", version="1")
    with pytest.raises(Unanswered):
        claim(Wire("http://127.0.0.1:1", token=Shown(), identity=who))


def test_the_environment_has_no_say(
    wire: Wire, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login eve password eve\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert claim(wire) == []
    assert edge.asked("/claim")[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_an_url_with_the_prefix_is_the_same(edge: FakeEdge) -> None:
    who = Identity(worker_id=WORKER, instance_id="i", version="1")
    assert claim(Wire(f"{edge.url}/api/queue/", token=Shown(), identity=who)) == []


def test_every_call_on_a_job_names_worker_and_lease(
    wire: Wire, edge: FakeEdge, tmp_path: Path
) -> None:
    held = edge.offer()
    [job] = claim(wire)
    beat = wire.heartbeat(job, lease_s=60, progress={"message": "m", "percent": 5}, timeout_s=5)
    assert (beat.cancel_requested, beat.drain, beat.expires_in_s) == (False, False, 60)
    wire.append(job, [Event(seq=1, level="info", message="hello", payload={"a": 1})])
    path = tmp_path / "log"
    path.write_bytes(b"\r\nline\r\n\x00" * 200_000)
    artifact = seal("logs/x.log", path)
    assert wire.upload(job, artifact) == "artifact-logs/x.log"
    wire.complete(job, summary="s", result={"k": 1})
    for call in edge.calls[1:]:
        assert (call.body["workerId"], call.body["leaseId"]) == (WORKER, held.job["leaseId"])
    uploaded = held.artifacts["logs/x.log"]
    assert uploaded["digest"] == artifact.digest
    assert uploaded["size"] == artifact.size == path.stat().st_size
    assert held.messages == ["hello"]
    assert held.report["resultSummary"] == "s"
    assert held.report["result"] == {"k": 1}


def test_a_drip_ends_in_time(edge: FakeEdge) -> None:
    times = iter([0.0, 100.0])
    who = Identity(worker_id=WORKER, instance_id="i", version="1")
    wire = Wire(edge.url, token=Shown(), identity=who, clock=lambda: next(times))
    with pytest.raises(Unanswered, match="in time"):
        claim(wire)


def test_a_flood_is_cut(wire: Wire, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_worker.wire.MAX_GRANT", 1000)
    edge.instead("/claim", Answer(body=b" " * 100_000))
    with pytest.raises(Unanswered, match="more than 2000 bytes"):
        claim(wire)
    edge.instead("/claim", Answer(302, b" " * 100_000, (("Location", f"{edge.url}/x"),)))
    with pytest.raises(Unanswered, match="more than 3000 bytes"):
        claim(wire, max_jobs=2)


def test_an_answer_about_one_job_is_a_small_one(wire: Wire, edge: FakeEdge) -> None:
    held = edge.offer("echo", text="ä" * (1 << 19))
    [job] = claim(wire)
    assert len(str(job.payload["text"])) == 1 << 19
    edge.instead("/heartbeat", Answer(body=json.dumps({"pad": " " * (4 << 20)}).encode()))
    with pytest.raises(Unanswered, match="more than 4194304 bytes"):
        wire.heartbeat(job, lease_s=60, progress=None, timeout_s=60)
    assert not wire.heartbeat(job, lease_s=60, progress=None, timeout_s=60).cancel_requested
    assert held.ended is None


@pytest.mark.parametrize("where", ["handshake", "headers", "a body with a length", "a body"])
def test_a_drip_of_bytes_outlives_no_deadline(tmp_path: Path, where: str) -> None:
    """Each read of it is quick; only the whole takes for ever."""
    head = b"HTTP/1.1 200 OK\r\n"
    drip = {
        "handshake": b"\x16\x03\x03\x3f\xff" + b"\0" * 16_000,
        "headers": head + b"X-Pad: " + b"x" * 16_000,
        "a body with a length": head + b"Content-Length: 16000\r\n\r\n" + b" " * 16_000,
        "a body": head + b"\r\n" + b" " * 16_000,
    }[where]
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            line, _ = server.accept()
            with line, contextlib.suppress(OSError):
                for byte in drip:
                    if stop.wait(0.02):
                        return
                    line.sendall(bytes([byte]))

        dripping = threading.Thread(target=serve)
        dripping.start()
        scheme = "https" if where == "handshake" else "http"
        who = Identity(worker_id=WORKER, instance_id="i", version="1")
        wire = Wire(f"{scheme}://127.0.0.1:{server.getsockname()[1]}", token=Shown(), identity=who)
        job = Job(id="j", type="t", payload={}, attempt=1, lease_id="l", fence=1)
        begun = time.monotonic()
        with pytest.raises(Unanswered):
            wire.heartbeat(job, lease_s=60, progress=None, timeout_s=0.5)
        # 16,000 bytes at this pace take more than five minutes
        assert time.monotonic() - begun < 60
        stop.set()
        dripping.join()


def test_a_redirect_to_nowhere_is_no_answer(wire: Wire, edge: FakeEdge) -> None:
    edge.instead("/claim", Answer(302, b"{}", (("Location", "http://["),)))
    with pytest.raises(Unanswered):
        claim(wire)


def test_a_token_that_was_replaced_is_used_without_a_restart(
    edge: FakeEdge, token_file: Path, tmp_path: Path
) -> None:
    who = Identity(worker_id=WORKER, instance_id="i", version="0")
    known = TokenFile(token_file)
    wire = Wire(edge.url, token=known, identity=who)
    assert claim(wire) == []
    edge.token = "drb_wkr_another"
    # until its owner has put the new one there, it is refused, and asked for once a call
    with pytest.raises(Refused, match="401"):
        claim(wire)
    asked = len(edge.calls)
    token_file.write_text("drb_wkr_another\n")
    assert claim(wire) == []
    assert len(edge.calls) == asked + 2
    assert claim(wire) == []
    assert len(edge.calls) == asked + 3
    # neither of them gets into a log
    assert known.known == (TOKEN, "drb_wkr_another")
    # a file cannot be sent twice from its middle: the client sends it again
    held = edge.offer("echo")
    file = tmp_path / "file"
    file.write_text("text")
    edge.token = "drb_wkr_third"
    token_file.write_text("drb_wkr_third\n")
    [job] = claim(wire, key="k2")
    edge.token = "drb_wkr_fourth"
    token_file.write_text("drb_wkr_fourth\n")
    with pytest.raises(Unanswered, match="replaced"):
        wire.upload(job, seal("logs/x", file))
    assert wire.upload(job, seal("logs/x", file)) == "artifact-logs/x"
    assert held.artifacts["logs/x"]["text"] == "text"
    # a file that holds none, or that others may read, replaces nothing
    edge.token = "drb_wkr_fifth"
    token_file.write_text("")
    with pytest.raises(Refused, match="401"):
        claim(wire)
