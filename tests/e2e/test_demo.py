"""`make demo`: ends by itself, with the patch shown and no process left."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.processes import Process

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
#: Every process of the demo inherits it.
MARK = f"demo-of-{os.getpid()}"


def run_demo(process: Callable[..., Process], root: Path = ROOT, **env: str) -> str:
    demo = process(
        [sys.executable, root / "deploy" / "demo" / "demo.py"],
        env={"LOGNAME": MARK, **env},
        stdout_apart=True,
    )
    code = demo.wait(180)
    assert code == 0, demo.stdout() + demo.tail()
    assert left() == []
    return demo.stdout()


def left() -> list[psutil.Process]:
    """Return every process that a demo of ours has left running."""
    return [p for p in psutil.process_iter(["environ"]) if MARK in str(p.info["environ"])]


@pytest.mark.codex
def test_the_real_codex_makes_the_patch_and_nothing_is_left(
    process: Callable[..., Process], codex: str
):
    output = run_demo(process)
    for expected in (
        "Codex CLI",
        "Job claimed",
        "Job completed",
        '+    return f"Goodbye, {name}!"',
        "+++ b/tests/test_farewell.py",
        "worker-1@edge online and the task as SUCCESS on it",
        "none is left",
        "in all",
    ):
        assert expected in output
    assert "STAND-IN" not in output


def test_without_npm_a_standin_plays_codex_and_the_output_says_so(
    process: Callable[..., Process], tmp_path: Path
):
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name not in {"codex", "npm", "node"}:
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
    # a clone of its own, whose cache is empty
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    output = run_demo(process, tmp_path, PATH=str(programs))
    assert "A STAND-IN PLAYS THE CODEX CLI" in output
    assert '+    return f"Goodbye, {name}!"' in output


@pytest.mark.codex
def test_a_demo_that_is_interrupted_leaves_nothing(process: Callable[..., Process], codex: str):
    demo = process(
        [sys.executable, ROOT / "deploy" / "demo" / "demo.py"],
        env={"LOGNAME": MARK},
        stdout_apart=True,
    )
    demo.wait_for("starting 1 worker", 60)
    assert demo.terminate(60) == 130
    assert "stopped" in demo.stdout()
    assert left() == []
