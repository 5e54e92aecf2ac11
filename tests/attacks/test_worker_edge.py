"""Attacks on the worker by whoever answers at the edge's address."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remote_worker import daemon
from tests.attacks.worker_kit import (
    GOOD,
    TOKEN,
    FakeEdge,
    StartWorker,
    edge,
    run_git,
    source,
    start_worker,
    template,
    token_file,
)
from tests.githost import _make_certificate
from tests.unit.remote_worker.edge import Answer

pytestmark = pytest.mark.timeout(180)


@contextmanager
def impostor(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve TLS with a certificate for git.test that nobody vouches for; keep what is said."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            heard.append(self.rfile.read(65536).decode("latin-1"))
            self.close_connection = True

    folder.mkdir()
    _make_certificate(folder / "host.pem", folder / "host.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem", folder / "host.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.attack(115)
@pytest.mark.parametrize("vouched", [False, True], ids=["self-signed", "another host's"])
def test_nobody_without_the_edges_certificate_hears_the_token(
    start_worker: StartWorker, tmp_path: Path, vouched: bool
) -> None:
    with impostor(tmp_path / "impostor") as (url, heard):
        ca = {"SSL_CERT_FILE": str(tmp_path / "impostor" / "host.pem")} if vouched else {}
        requests_ca = {"REQUESTS_CA_BUNDLE": ca["SSL_CERT_FILE"]} if vouched else {}
        worker = start_worker(GOOD, "--once", url=url, **ca, **requests_ca)
        assert worker.wait(60) == daemon.EXIT_PREFLIGHT
    assert not any(TOKEN in words for words in heard)
    assert "certificate" in worker.output().lower() or "ssl" in worker.output().lower()


@pytest.mark.attack(115)
@pytest.mark.parametrize(
    "url",
    [
        "http://edge.example", "http://10.0.0.1:8080", "http://127.0.0.1.example:80",
        "http://localhost.example", "ftp://edge.example", "https://user:pw@edge.example", "//edge",
    ],
)  # fmt: skip
def test_plain_http_is_for_this_machine_alone(start_worker: StartWorker, url: str) -> None:
    usage = 2
    assert start_worker(GOOD, "--once", url=url).wait(60) == usage


HOSTILE: list[dict[str, object]] = [
    {"type": 7},
    {"type": "x" * 10_000},
    {"payload": "--help"},
    {"payload": ["a"]},
    {"attempt": "1"},
    {"attempt": -1},
    {"fence": "7"},
    {"fence": 1.5},
    {"payload": {"repository": "Org/Repo", "instruction": "x" * (3 << 20)}},
    {"payload": {"repository": {"$ne": ""}, "instruction": ["x"], "publish": "pr"}},
    {"type": "../../codex_exec"},
]
NO_JOBS: list[dict[str, object]] = [
    {"id": "../../../etc/passwd"},
    {"id": "a/b"},
    {"id": ""},
    {"id": None},
    {"id": "x" * 10_000},
]


@pytest.mark.attack(116)
def test_an_edge_that_lies_is_survived(
    edge: FakeEdge, start_worker: StartWorker, source: Path, tmp_path: Path
) -> None:
    """Jobs of no known shape are failed or left alone, and the one that is one is done."""
    good = {"repository": f"file://{source}", "instruction": "Change it."}
    hostile = []
    for number, change in enumerate(HOSTILE):
        job = {
            "id": f"hostile-{number}", "type": "codex_exec", "payload": good, "attempt": 1,
            "fence": 7, "leaseId": f"lease-{number}",
        }  # fmt: skip
        hostile.append(edge.offer_raw(job | change))
    for change in NO_JOBS:
        body = json.dumps({"job": change, "jobs": [edge.jobs["hostile-0"].job | change]})
        edge.instead("/claim", Answer(body=body.encode()))
    last = edge.offer(**good)
    code = 'open("a.txt", "w").write("changed")'
    worker = start_worker(code)
    worker.until(lambda: last.ended, 120.0, "the good job is done")
    assert last.ended == "complete"
    assert worker.terminate() == daemon.EXIT_OK
    for change, held in zip(HOSTILE, hostile, strict=True):
        assert held.ended == "fail", change
        assert held.report["retryable"] is False
        assert held.report["errorType"] in {
            "bad_job", "unsupported_job_type", "invalid_payload", "invalid_repository",
        }, change  # fmt: skip
    assert not list(tmp_path.rglob("passwd"))
    assert list((tmp_path / "work" / "jobs").iterdir()) == []
