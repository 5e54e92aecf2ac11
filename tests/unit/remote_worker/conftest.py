"""What the tests of the worker share: an edge, a way to reach it, a repository, a job's context."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_worker.client import Client, Pace
from remote_worker.settings import Settings
from remote_worker.wire import Identity, Wire
from tests.unit.remote_worker.edge import TOKEN, WORKER, FakeEdge


@pytest.fixture
def edge() -> Iterator[FakeEdge]:
    with FakeEdge() as running:
        yield running


@pytest.fixture
def wire(edge: FakeEdge) -> Wire:
    identity = Identity(worker_id=WORKER, instance_id="instance-1", version="1.2.3")
    return Wire(edge.url, token=TOKEN, identity=identity)


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
