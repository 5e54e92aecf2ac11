"""What the tests of the worker share: an edge, a way to reach it, a repository, a job's context."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_worker.client import Client, Pace
from remote_worker.clock import Clock, steady
from remote_worker.handlers import HANDLERS
from remote_worker.job import parse_job
from remote_worker.lease import Terms
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Spool
from remote_worker.wire import Identity, Wire
from tests import jobtypes
from tests.unit.remote_worker.edge import TOKEN, WORKER, FakeEdge, Held, Shown

Run = Callable[..., Held]

# Edits, tells it in Codex's events, and writes down what it was given.
GOOD = """
import json, os, sys
from pathlib import Path
here = Path(sys.argv[sys.argv.index("--cd") + 1])
seen = {"argv": sys.argv[1:], "stdin": sys.stdin.read(), "env": dict(os.environ)}
seen["cwd"] = os.getcwd()
Path(%(seen)r).write_text(json.dumps(seen))
(here / "a.txt").write_text("changed\\n")
(here / "new.txt").write_text("new\\n")
print("starting", file=sys.stderr)
for event in (
    {"type": "item.completed", "item": {"type": "agent_message", "text": "All %(token)s done."}},
    {"type": "turn.completed", "usage": {"input_tokens": 12, "output_tokens": 3}},
):
    print(json.dumps(event), flush=True)
"""


@pytest.fixture
def edge() -> Iterator[FakeEdge]:
    with FakeEdge() as running:
        yield running


@pytest.fixture(scope="session")
def job_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder to put on a worker's path: it has the job types `echo` and `child`."""
    return jobtypes.install(tmp_path_factory.mktemp("job-types"))


@pytest.fixture
def wire(edge: FakeEdge) -> Wire:
    identity = Identity(worker_id=WORKER, instance_id="instance-1", version="1.2.3")
    return Wire(edge.url, token=Shown(), identity=identity)


@pytest.fixture
def waits() -> list[float]:
    """Collect what would have been slept."""
    return []


@pytest.fixture
def client(wire: Wire, waits: list[float]) -> Client:
    def sleep(seconds: float, _hurry: object) -> None:
        waits.append(seconds)

    return Client(wire, pace=Pace(sleep=sleep, draw=lambda _low, high: high))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def make_settings(edge: FakeEdge, token_file: Path, tmp_path: Path) -> Callable[..., Settings]:
    def make(**more: object) -> Settings:
        given: dict[str, object] = {
            "url": edge.url,
            "token_file": token_file,
            "worker_id": WORKER,
            "work_dir": tmp_path / "work",
            "codex_home": tmp_path / "codex-home",
            "wait_s": 1,
            "path": os.environ["PATH"],
        }
        return Settings(**(given | more))  # type: ignore[arg-type]

    return make


def run_git(*args: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with two commits, a branch and a tag, once."""
    path = tmp_path_factory.mktemp("template") / "source"
    path.mkdir()
    run_git("init", "-q", "--template=", "-b", "main", cwd=path)
    (path / "a.txt").write_text("one\n")
    (path / ".gitignore").write_text("*.log\n")
    run_git("add", ".", cwd=path)
    run_git("commit", "-qm", "first", cwd=path)
    (path / "b.txt").write_text("two\n")
    run_git("add", ".", cwd=path)
    run_git("commit", "-qm", "second", cwd=path)
    run_git("tag", "-am", "v1", "v1", "HEAD~1", cwd=path)
    run_git("branch", "feature/x", "HEAD~1", cwd=path)
    return path


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    """Give the test its own copy of the repository."""
    return Path(shutil.copytree(template, tmp_path / "source"))


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    return tmp_path / "seen.json"


@pytest.fixture
def run(
    client: Client, edge: FakeEdge, make_settings: Callable[..., Settings], source: Path,
    tmp_path: Path, seen: Path,
) -> Run:  # fmt: skip
    def call(
        code: str,
        *,
        settings: dict[str, object] | None = None,
        limits: dict[str, object] | None = None,
        clock: Clock = steady,
        **payload: object,
    ) -> Held:
        codex = tmp_path / "codex"
        codex.write_text(f"#!{sys.executable} -IS\n{code % {'seen': str(seen), 'token': TOKEN}}")
        codex.chmod(0o755)
        url = f"file://{source}"
        given = {"codex": str(codex), "allow_repository": (url,), "concurrency": 1}
        worker = make_settings(**(given | (settings or {})))
        worker.work_dir.mkdir(exist_ok=True)
        spool = Spool(worker.work_dir)
        spool.open()
        held = edge.offer(**({"repository": url, "instruction": "Change it."} | payload))
        job_run = JobRun(
            parse_job(held.job | (limits or {})), client=client, settings=worker, spool=spool,
            handlers=HANDLERS, redactor=Redactor([TOKEN]), stopping=lambda: False,
            terms=Terms(lease_s=60, interval_s=0.1, clock=clock), on_drain=lambda: None,
        )  # fmt: skip
        assert job_run.run()
        spool.close()
        assert list((worker.work_dir / "jobs").iterdir()) == []
        return held

    return call
