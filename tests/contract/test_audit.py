"""`.ci/audit` against a service of advisories on loopback: known, unknown, away."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]
LOCK = "requests==2.0.0 --hash=sha256:" + "0" * 64 + "\n"
ADVISORY = {
    "id": "PYSEC-0000-1",
    "summary": "Made up for a test.",
    "published": "2020-01-01T00:00:00Z",
    "modified": "2020-01-01T00:00:00Z",
    "aliases": [],
    "affected": [
        {
            "package": {"name": "requests", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1.0"}]}],
            "versions": ["2.0.0"],
        }
    ],
}
Audit = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture
def advisories() -> Iterator[tuple[str, list[str], list[object]]]:
    """Serve what the last list holds; the first one says who was asked about."""
    asked: list[str] = []
    known: list[object] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["package"]["name"]
            asked.append(name)
            vulnerable = {"vulns": known} if known and name == "requests" else {}
            answer = json.dumps(vulnerable).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query", asked, known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)

    def run(url: str, **env: str) -> subprocess.CompletedProcess[str]:
        told = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        return subprocess.run(
            [ROOT / ".ci" / "audit", Path(sys.executable).parent, tmp_path / "stamp", lock],
            check=False, capture_output=True, text=True, cwd=tmp_path, timeout=100,
            env=told | {"AUDIT_URL": url} | env,
        )  # fmt: skip

    return run


def test_what_is_known_fails_and_what_is_clean_is_asked_once(
    audit: Audit, advisories: tuple[str, list[str], list[object]]
) -> None:
    url, asked, known = advisories
    known.append(ADVISORY)
    found = audit(url)
    assert found.returncode == 1, found.stderr
    assert "PYSEC-0000-1" in found.stdout
    known.clear()
    assert audit(url).returncode == 0
    assert asked.count("requests") == 2
    assert audit(url).returncode == 0
    assert asked.count("requests") == 2
    assert audit(url, AUDIT="required").returncode == 0
    assert asked.count("requests") == 3


def test_a_service_that_is_away_fails_only_where_it_is_required(audit: Audit) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    away = audit(url)
    assert (away.returncode, "SKIPPED" in away.stderr) == (0, True)
    assert audit(url, AUDIT="required").returncode == 1
