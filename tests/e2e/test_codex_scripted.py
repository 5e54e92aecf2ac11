"""The real Codex CLI, with no account and no network but loopback, edits a real repository."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from deploy.demo import codex_home, install_codex, repository, standin_codex
from deploy.demo.model_server import ModelServer
from deploy.demo.scripts import SCRIPTS, Script, Shell, scripts
from remote_worker.handlers.codex_events import Transcript

pytestmark = [pytest.mark.e2e, pytest.mark.codex, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "deploy" / "demo" / "standin_codex.py"


class Trap:
    """A proxy that refuses everyone and keeps the first line of what each asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                if line := self.rfile.readline(65536):
                    asked.append(line.decode("latin-1").strip())
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "codex-home"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    repository.create(tmp_path / "repository")
    return tmp_path / "repository"


def run_exec(
    codex: str,
    home: Path,
    clone: Path,
    *options: str,
    through: str | None = None,
    before: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    proxy = {} if through is None else {"HTTPS_PROXY": through, "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [*before, codex, "exec", "--json", *options],
        input=repository.INSTRUCTION,
        cwd=clone,
        env=codex_home.environment(home) | proxy,
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def patch_of(clone: Path) -> str:
    subprocess.run(["git", "-C", clone, "add", "--all"], check=True)
    diff = ["git", "-C", clone, "diff", "--cached", "HEAD"]
    return subprocess.run(diff, check=True, capture_output=True, text=True).stdout


def test_edits_files_runs_the_tests_and_reports_usage(codex: str, home: Path, clone: Path):
    server = ModelServer(SCRIPTS["edit"])
    with server as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        done = run_exec(codex, home, clone)
    assert done.returncode == 0, done.stderr
    patch = patch_of(clone)
    assert '+    return f"Goodbye, {name}!"' in patch
    assert "+++ b/tests/test_farewell.py" in patch
    told = events(done)
    assert [e for e in told if e.get("item", {}).get("type") == "error"] == [], (
        "it warns of nothing"
    )
    commands = [e["item"] for e in told if e.get("item", {}).get("type") == "command_execution"]
    assert commands[-1]["exit_code"] == 0
    assert "Ran 2 tests" in commands[-1]["aggregated_output"]
    assert told[-1]["type"] == "turn.completed"
    assert told[-1]["usage"]["output_tokens"] == 75
    # the instruction arrived by stdin, whole
    assert repository.INSTRUCTION in json.dumps(server.requests[0])


def test_a_model_that_codex_does_not_know_is_offered_no_patch_tool_and_edits_all_the_same(
    codex: str, home: Path, clone: Path
):
    server = ModelServer(SCRIPTS["edit"])
    with server as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        done = run_exec(codex, home, clone, "--model", "scripted")
    assert done.returncode == 0, done.stderr
    assert "apply_patch" not in [tool.get("name") for tool in server.requests[0]["tools"]]
    assert "+++ b/tests/test_farewell.py" in patch_of(clone)


def test_a_command_longer_than_its_yield_is_polled_to_its_end(codex: str, home: Path, clone: Path):
    script: Script = (Shell("sleep 12; echo late > late.txt"), *SCRIPTS["nothing"])
    with ModelServer(script) as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        done = run_exec(codex, home, clone)
    assert done.returncode == 0, done.stderr
    assert "+late" in patch_of(clone)


def test_a_refusal_of_the_model_is_an_exit_code_and_no_change(codex: str, home: Path, clone: Path):
    with ModelServer(SCRIPTS["fail"]) as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        done = run_exec(codex, home, clone)
    assert done.returncode == 1
    assert events(done)[-1] == {"type": "turn.failed", "error": {"message": "the script says no"}}
    assert patch_of(clone) == ""


def test_talks_to_the_model_and_to_nobody_else(codex: str, home: Path, clone: Path):
    """Its plugins and apps would dial github.com and chatgpt.com; the configuration forbids it.

    All that is not loopback goes to a proxy of the test's own, which keeps who was asked for.
    """
    with Trap() as trap, ModelServer(scripts(seconds=2.0)["slow"]) as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        assert run_exec(codex, home, clone, through=trap.url).returncode == 0
        assert trap.asked == []
        # the trap does catch what it is there for
        talkative = ["--enable", "plugins", "--enable", "remote_plugin"]
        assert run_exec(codex, home, clone, *talkative, through=trap.url).returncode == 0
        assert trap.asked != []


def test_the_standin_makes_the_same_change_and_speaks_the_same_words(home: Path, clone: Path):
    codex = str(STANDIN)
    assert codex_home.prepare(home, codex=codex, model_url="http://127.0.0.1:1/v1")
    status = subprocess.run([codex, "login", "status"], check=False, capture_output=True)
    assert status.returncode == 0
    done = run_exec(codex, home, clone, "--sandbox", "workspace-write", "--model", "x")
    assert done.returncode == 0, done.stderr
    assert [e["type"] for e in events(done)] == [
        "thread.started",
        "turn.started",
        "item.started",
        "item.completed",
        "item.completed",
        "turn.completed",
    ]
    assert '+    return f"Goodbye, {name}!"' in patch_of(clone)
    assert standin_codex.VERSION in str(install_codex.version_of(STANDIN))


PROBE = """
import os, sys
from pathlib import Path
from remote_worker import codex, isolation
from remote_worker.settings import Settings
home = Path(sys.argv[2])
settings = Settings(url="https://edge.example", token_file=home, worker_id="w", work_dir=home,
                    codex=sys.argv[1], codex_home=home, path=os.environ["PATH"])
trial = isolation.codex_sandbox(
    settings, codex.environment(settings, home=home, tmp=home), cwd=home
)
print(trial.answer.value, trial.detail)
"""
NO_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'


def probe(codex: str, home: Path, *before: str) -> str:
    argv = [*before, sys.executable, "-c", PROBE, codex, str(home)]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    if before and "proc/sys/user" in done.stderr:
        pytest.skip(f"this machine lets nobody forbid namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_worker_finds_out_whether_the_sandbox_works(codex: str, home: Path):
    codex_home.prepare(home, codex=codex, model_url="http://127.0.0.1:1/v1")
    works = codex_home.sandbox_works(home, codex=codex)
    assert probe(codex, home).startswith("yes works" if works else "no ")


def test_without_user_namespaces_it_finds_out_and_a_run_says_why(
    codex: str, home: Path, clone: Path
):
    """The trap: Codex runs to its end, changes nothing, and its exit code is 0."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine has no user namespaces to take away")
    inside = ("unshare", "-Ur", "sh", "-c", NO_NAMESPACES, "sh")
    with ModelServer(SCRIPTS["edit"]) as url:
        codex_home.prepare(home, codex=codex, model_url=url)
        assert probe(codex, home, *inside).startswith("no bwrap: ")
        done = run_exec(codex, home, clone, "--sandbox", "workspace-write", before=inside)
    assert done.returncode == 0
    assert patch_of(clone) == ""
    transcript = Transcript(tell=lambda *_: None, root=clone)
    for line in done.stdout.splitlines():
        transcript.feed(line.encode())
    assert transcript.nothing_started
