"""What attacks on the worker have at hand: its unit tests' fixtures, and the real daemon."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from remote_worker import isolation
from remote_worker.box import Kind
from remote_worker.errors import Misconfigured
from remote_worker.settings import Settings
from tests.processes import Process
from tests.services import missing
from tests.unit.remote_worker.conftest import (
    GOOD,
    Run,
    client,
    edge,
    make_settings,
    run,
    run_git,
    seen,
    source,
    template,
    token_file,
    waits,
    wire,
)
from tests.unit.remote_worker.edge import TOKEN, WORKER, FakeEdge, Held
from tests.unit.remote_worker.test_publish import bare, git_token, host, publish

__all__ = [
    "GOOD",
    "TOKEN",
    "FakeEdge",
    "Held",
    "Run",
    "StartWorker",
    "bare",
    "boxed",
    "client",
    "edge",
    "git_token",
    "host",
    "make_settings",
    "of_job",
    "passable",
    "publish",
    "run",
    "run_git",
    "seen",
    "source",
    "start_worker",
    "template",
    "token_file",
    "waits",
    "wire",
]

ROOT: Final = Path(__file__).parents[2]
#: Stands for Codex at the gates, and for what attacks when it is run.
AGENT: Final = """#!{python} -IS
import sys
if "--version" in sys.argv:
    print("codex-cli 0.0.0")
elif sys.argv[1:3] == ["login", "status"]:
    print("Logged in")
elif sys.argv[1] == "exec":
    exec(open({code!r}).read())
"""

StartWorker = Callable[..., Process]


@pytest.fixture(params=[Kind.BWRAP, Kind.UNSHARE])
def boxed(request: pytest.FixtureRequest) -> str:
    """Give each kind of box there can be; in CI there are both."""
    kind = str(request.param)
    nowhere = Path("/nowhere")
    settings = Settings(
        url="https://edge.example", token_file=nowhere, worker_id=WORKER, work_dir=nowhere,
        path=os.environ["PATH"], isolation=kind,
    )  # fmt: skip
    try:
        isolation.verdict(settings)
    except Misconfigured as error:
        missing(str(error))
    return kind


@pytest.fixture
def start_worker(
    process: Callable[..., Process], edge: FakeEdge, token_file: Path, tmp_path: Path, source: Path
) -> Iterator[StartWorker]:
    """Start the real daemon, with a program of the test's in Codex's place."""

    def start(
        code: str = "", *options: str, url: str = edge.url, folder: Path = tmp_path,
        python: str = sys.executable, **env: str,
    ) -> Process:  # fmt: skip
        (folder / "agent.py").write_text(code)
        agent = folder / "agent"
        agent.write_text(AGENT.format(python=python, code=str(folder / "agent.py")))
        agent.chmod(0o755)
        argv = [
            *(sys.executable, "-m", "remote_worker", "run", "--url", url, "--worker-id", WORKER),
            *("--token-file", str(token_file), "--work-dir", str(tmp_path / "work")),
            *("--codex", str(agent), "--codex-home", str(tmp_path / "codex-home")),
            *("--allow-repository", f"file://{source}", "--wait-seconds", "1"),
            *("--log-format", "json", "--codex-sandbox", "danger-full-access", *options),
        ]
        return process(argv, name="worker", env=env, cwd=ROOT)

    yield start
    shutil.rmtree(tmp_path / "work", ignore_errors=True)


@pytest.fixture
def passable() -> Iterator[Path]:
    """Give a folder that any user can pass through, as those of pytest cannot be."""
    with tempfile.TemporaryDirectory(prefix="drawbridge-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def of_job(held: Held) -> list[int]:
    """Return the processes that carry a job's name in their environment, wherever they fled to."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("BRIDGE_JOB_ID") == held.job["id"] and one.status() != "zombie":
                found.append(one.pid)
        except (psutil.Error, OSError):
            continue
    return found
