"""What `workdirMode: reuse` reuses, and what of an earlier job does not come along."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker.git import Git
from remote_worker.handlers import workspace as ws
from remote_worker.handlers.clone_cache import CloneCache
from remote_worker.repository import parse
from tests.unit.remote_worker.conftest import GOOD, Run, run_git

Prepare = Callable[..., ws.Workspace]


@pytest.fixture
def prepare(tmp_path: Path, source: Path) -> Prepare:
    """Prepare one workspace after the other."""
    count = iter(range(100))
    (tmp_path / "home").mkdir()

    def call(*, ref: str | None = None, depth: int = 1) -> ws.Workspace:
        directory = tmp_path / f"job-{next(count)}"
        directory.mkdir()
        git = Git(
            program="git", home=tmp_path / "home", interrupt=lambda: None, allow_file=True,
            environment={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        return ws.prepare(
            git, parse(f"file://{source}"), ref=ref, depth=depth, directory=directory,
            cache=CloneCache(tmp_path / "cache"),
        )  # fmt: skip

    return call


def kept(tmp_path: Path) -> Path:
    (only,) = (tmp_path / "cache").glob("*.git")
    return only


@pytest.mark.parametrize("depth", [0, 1])
def test_the_second_clone_begins_with_what_the_first_has(
    prepare: Prepare, source: Path, tmp_path: Path, depth: int
) -> None:
    first = prepare(depth=depth)
    (source / "c.txt").write_text("three\n")
    run_git("add", ".", cwd=source)
    run_git("commit", "-qm", "third", cwd=source)
    second = prepare(depth=depth)
    assert second.base_commit == run_git("rev-parse", "main", cwd=source)
    assert (second.repo / "c.txt").read_text() == "three\n"
    assert run_git("status", "--short", cwd=second.repo) == ""
    count = int(run_git("rev-list", "--count", "HEAD", cwd=second.repo))
    assert count == (1 if depth else 3)
    assert run_git("fsck", "--no-dangling", cwd=second.repo) == ""
    known = run_git("cat-file", "-t", first.base_commit, cwd=second.base_git)
    assert known == "commit"


def test_another_ref_is_that_ref(prepare: Prepare, source: Path) -> None:
    prepare()
    workspace = prepare(ref="feature/x")
    assert workspace.base_commit == run_git("rev-parse", "feature/x", cwd=source)
    assert not (workspace.repo / "b.txt").exists()


def test_a_poisoned_clone_runs_nothing_and_changes_nothing(
    prepare: Prepare, source: Path, tmp_path: Path
) -> None:
    """Without a box an agent could write there: still only checked objects come out of it."""
    prepare()
    clone, marker = kept(tmp_path), tmp_path / "marker"
    hook = f"#!/bin/sh\ntouch {marker}\n"
    for name in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"):
        (clone / "hooks").mkdir(exist_ok=True)
        (clone / "hooks" / name).write_text(hook)
        (clone / "hooks" / name).chmod(0o755)
    script = tmp_path / "script"
    script.write_text(hook + 'exec "$@"\n')
    script.chmod(0o755)
    with (clone / "config").open("a") as config:
        config.write(
            f"[uploadpack]\n\tpackObjectsHook = {script}\n[core]\n\tfsmonitor = {script}\n"
            f"\tsshCommand = {script}\n\thooksPath = {clone / 'hooks'}\n"
            f'\talternateRefsCommand = {script}\n[remote "origin"]\n\turl = ext::sh -c {script}\n'
            "\tpromisor = true\n\tpartialCloneFilter = blob:none\n"
        )
    workspace = prepare()
    assert workspace.base_commit == run_git("rev-parse", "main", cwd=source)
    assert not marker.exists()
    assert (kept(tmp_path) / "config").read_text().count("packObjectsHook") == 0


@pytest.mark.parametrize("damage", ["empty", "forged"])
def test_a_damaged_clone_is_made_anew(
    prepare: Prepare, source: Path, tmp_path: Path, damage: str
) -> None:
    prepare()
    for pack in (kept(tmp_path) / "objects" / "pack").iterdir():
        pack.chmod(stat.S_IRUSR | stat.S_IWUSR)
        data = pack.read_bytes()
        pack.write_bytes(b"" if damage == "empty" else data[:-30] + bytes(30))
    workspace = prepare()
    assert (workspace.repo / "b.txt").read_text() == "two\n"
    assert run_git("fsck", cwd=kept(tmp_path)) == ""


def test_a_job_reuses_and_nothing_of_the_earlier_one_is_there(run: Run, source: Path) -> None:
    dirty = (
        GOOD
        + """
(here / ".git" / "hooks").mkdir(exist_ok=True)
(here / ".git" / "hooks" / "pre-commit").write_text("x")
(here / "ignored.log").write_text("x")
"""
    )
    first = run(dirty, workdirMode="reuse")
    look = """
import os
print(sorted(os.listdir(".")), os.path.exists(".git/hooks/pre-commit"))
print(os.listdir(os.path.join(os.environ["HOME"])))
"""
    second = run(look, workdirMode="reuse")
    assert (first.ended, second.ended) == ("complete", "complete")
    said = second.artifacts["logs/codex_exec.log"]["text"]
    assert "['.git', '.gitignore', 'a.txt', 'b.txt'] False" in said
    assert "['.gitconfig']" in said
    assert second.report["result"]["patch"] is None
