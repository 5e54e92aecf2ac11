"""Clones and patches, with real git, in workspaces that mean harm (attacks 101, 102, 104, 105)."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker.errors import Interrupted, Interruption, JobFailed
from remote_worker.git import Git
from remote_worker.handlers import changes as changed
from remote_worker.handlers import workspace as ws
from remote_worker.repository import parse
from tests.unit.remote_worker.conftest import run_git


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    (path / "home").mkdir(parents=True)
    return path


@pytest.fixture
def git(directory: Path) -> Git:
    return Git(
        program="git",
        home=directory / "home",
        interrupt=lambda: None,
        allow_file=True,
        environment={"PATH": os.environ["PATH"]},
    )


@pytest.fixture
def prepare(git: Git, directory: Path, source: Path) -> Callable[..., ws.Workspace]:
    def call(ref: str | None = None, *, depth: int = 1) -> ws.Workspace:
        url = parse(f"file://{source}")
        return ws.prepare(git, url, ref=ref, depth=depth, directory=directory)

    return call


@pytest.fixture
def collect(git: Git, directory: Path) -> Callable[[ws.Workspace], changed.Changes]:
    def call(workspace: ws.Workspace) -> changed.Changes:
        return changed.collect(
            git, workspace, directory=directory, patch=directory / "changes.patch"
        )

    return call


def applied(source: Path, commit: str, patch: Path, tmp_path: Path) -> Path:
    """Apply a patch to the starting commit, as whoever gets it will."""
    target = tmp_path / "applied"
    run_git("clone", "-q", str(source), str(target), cwd=tmp_path)
    run_git("checkout", "-q", commit, cwd=target)
    run_git("apply", "--index", str(patch), cwd=target)
    return target


@pytest.mark.parametrize(
    "ref,start,branch,has_b",
    [
        (None, "main", "main", True),
        ("main", "main", "main", True),
        ("refs/heads/main", "main", "main", True),
        ("feature/x", "feature/x", "feature/x", False),
        ("v1", "v1^{commit}", None, False),
        ("refs/tags/v1", "v1^{commit}", None, False),
    ],
)
def test_a_ref_is_a_branch_or_a_tag(
    prepare: Callable[..., ws.Workspace],
    source: Path,
    ref: str | None,
    start: str,
    branch: str | None,
    has_b: bool,
) -> None:
    workspace = prepare(ref)
    assert workspace.base_commit == run_git("rev-parse", start, cwd=source)
    assert workspace.branch == branch
    assert (workspace.repo / "b.txt").exists() is has_b
    assert run_git("status", "--porcelain", cwd=workspace.repo) == ""


@pytest.mark.parametrize("depth,commits", [(0, 2), (1, 1), (2, 2)])
def test_depth(prepare: Callable[..., ws.Workspace], depth: int, commits: int) -> None:
    workspace = prepare("main", depth=depth)
    assert len(run_git("log", "--format=%H", cwd=workspace.repo).split()) == commits


@pytest.mark.parametrize("name", ["main~1", "feature/x"])
def test_a_ref_is_a_commit(prepare: Callable[..., ws.Workspace], source: Path, name: str) -> None:
    sha = run_git("rev-parse", name, cwd=source)
    workspace = prepare(sha)
    assert (workspace.base_commit, workspace.branch) == (sha, None)


@pytest.mark.parametrize("ref", ["nowhere", "refs/tags/main", "1" * 40])
def test_a_ref_that_is_not_there_is_final(prepare: Callable[..., ws.Workspace], ref: str) -> None:
    with pytest.raises(JobFailed) as failure:
        prepare(ref)
    assert failure.value.error_type == "clone_failed"
    assert not failure.value.retryable


def test_a_host_that_cannot_be_reached_is_worth_another_try(git: Git, directory: Path) -> None:
    repository = parse("https://no-such-host.invalid/o/r")
    with pytest.raises(JobFailed) as failure:
        ws.prepare(git, repository, ref="main", depth=1, directory=directory)
    assert failure.value.retryable


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "--upload-pack=touch X",
        "--orphan=x",
        "-f",
        "a..b",
        "@{-1}",
        "@",
        "refs/heads/x:refs/heads/main",
        "+main",
        "main\n",
        "main\0",
        "a b",
        "a^",
        "a~1",
        "a:b",
        "a?b",
        "a*b",
        "a[b",
        "a\\b",
        "x.lock",
        "x.lock/y",
        "x/",
        "/x",
        "x//y",
        "x.",
        "x/.y",
        "ä",
        "x" * 201,
        "0" * 40,
    ],
)
def test_what_is_no_ref(ref: str) -> None:
    with pytest.raises(JobFailed) as failure:
        ws.check_ref(ref)
    assert failure.value.error_type == "invalid_ref"


@pytest.mark.parametrize("ref", ["main", "feature/x", "v1.2.3", "a+b", "user@x", "0" * 39 + "1"])
def test_what_is_a_ref(ref: str) -> None:
    ws.check_ref(ref)


def test_the_patch_is_everything_the_run_changed(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    source: Path,
    tmp_path: Path,
) -> None:
    workspace = prepare("main")
    repo = workspace.repo
    (repo / "committed").write_text("c\n")
    (repo / "a.txt").write_text("one\ncommitted\n")
    (repo / "kept.log").write_text("an ignored file, committed\n")
    run_git("add", "-f", ".", "kept.log", cwd=repo)
    run_git("commit", "-qm", "by the agent", cwd=repo)
    (repo / "staged").write_bytes(bytes(range(256)))
    (repo / "staged.log").write_text("an ignored file, staged\n")
    run_git("add", "-f", "staged", "staged.log", cwd=repo)
    (repo / "new dir").mkdir()
    (repo / "new dir" / "ünï \n").write_text("new\n")
    (repo / "script").write_text("#!/bin/sh\n")
    (repo / "script").chmod(0o755)
    (repo / "link").symlink_to("/etc/passwd")
    (repo / "b.txt").unlink()
    (repo / "trash.log").write_text("ignored\n")

    changes = collect(workspace)

    assert sorted(changes.files) == sorted(
        ["a.txt", "b.txt", "committed", "kept.log", "link", "new dir/ünï \n", "script", "staged",
         "staged.log"]
    )  # fmt: skip
    assert changes.patch is not None
    target = applied(source, workspace.base_commit, changes.patch, tmp_path)
    assert (target / "a.txt").read_text() == "one\ncommitted\n"
    assert (target / "staged").read_bytes() == bytes(range(256))
    assert (target / "link").readlink() == Path("/etc/passwd")
    assert os.access(target / "script", os.X_OK)
    assert not (target / "b.txt").exists()


def test_no_change_is_no_patch(
    prepare: Callable[..., ws.Workspace], collect: Callable[[ws.Workspace], changed.Changes]
) -> None:
    changes = collect(prepare())
    assert (changes.patch, list(changes.files)) == (None, [])


def test_a_change_of_history_alone_is_no_change(
    prepare: Callable[..., ws.Workspace], collect: Callable[[ws.Workspace], changed.Changes]
) -> None:
    workspace = prepare()
    run_git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=workspace.repo)
    run_git("checkout", "-q", "--orphan", "elsewhere", cwd=workspace.repo)
    assert collect(workspace).patch is None


def set_traps(repo: Path, marker: Path) -> None:
    """Write into a workspace what would run a program on a trusting git."""
    touch = f"touch {marker}"
    trap = repo.parent / "trap.sh"
    trap.write_text(f"#!/bin/sh\n{touch}\ncat\n")
    trap.chmod(0o755)
    keys = (
        "core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.askPass",
        "core.alternateRefsCommand", "diff.external", "diff.evil.textconv", "diff.evil.command",
        "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "merge.evil.driver",
        "gpg.program", "credential.helper", "uploadpack.packObjectsHook",
        "remote.origin.uploadpack", "interactive.diffFilter",
    )  # fmt: skip
    settings = [(key, str(trap)) for key in keys]
    settings += [
        ("filter.evil.required", "true"),
        ("alias.add", f"!{touch}"),
        ("url.ext::sh -c touch.insteadOf", "file://"),
        ("core.hooksPath", str(repo.parent)),
        ("core.worktree", "/"),
    ]
    with (repo / ".git" / "config").open("a") as config:
        for key, value in settings:
            section, _, name = key.rpartition(".")
            head, _, inner = section.partition(".")
            title = f'{head} "{inner}"' if inner else head
            config.write(f'[{title}]\n\t{name} = "{value}"\n')
    attributes = "* filter=evil diff=evil merge=evil\n"
    (repo / ".gitattributes").write_text(attributes)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text(attributes)
    hooks = repo / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "post-index-change", "post-checkout", "fsmonitor-watchman"):
        (hooks / name).write_text(trap.read_text())
        (hooks / name).chmod(0o755)


def test_a_poisoned_workspace_runs_nothing(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    tmp_path: Path,
) -> None:
    workspace = prepare()
    marker = tmp_path / "marker"
    (workspace.repo / "a.txt").write_text("changed\n")
    set_traps(workspace.repo, marker)
    # The traps work: a plain git in this workspace falls into them.
    plain = ["git", "--work-tree=.", "--git-dir=.git", "status"]
    subprocess.run(plain, cwd=workspace.repo, check=False, capture_output=True)
    assert marker.exists()
    marker.unlink()

    changes = collect(workspace)

    assert sorted(changes.files) == [".gitattributes", "a.txt"]
    assert changes.patch is not None
    assert "+changed" in changes.patch.read_text()
    assert not marker.exists()


def test_nested_repositories_are_plain_files_and_run_nothing(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    tmp_path: Path,
) -> None:
    workspace = prepare()
    marker = tmp_path / "marker"
    for name in ("with-commit", "without"):
        nested = workspace.repo / name
        nested.mkdir()
        run_git("init", "-q", cwd=nested)
        (nested / "file").write_text("nested\n")
    run_git("add", ".", cwd=workspace.repo / "with-commit")
    run_git("commit", "-qm", "nested", cwd=workspace.repo / "with-commit")
    run_git("add", "with-commit", cwd=workspace.repo)
    (workspace.repo / "with-commit" / "file").write_text("changed\n")
    set_traps(workspace.repo / "with-commit", marker)
    (workspace.repo / "trap.sh").unlink()

    changes = collect(workspace)

    assert changes.unnested == 2
    assert sorted(changes.files) == [
        "with-commit/.gitattributes", "with-commit/file", "without/file",
    ]  # fmt: skip
    assert not marker.exists()


def test_a_populated_submodule_runs_nothing_and_is_not_in_the_patch(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    source: Path,
    tmp_path: Path,
) -> None:
    head = run_git("rev-parse", "HEAD", cwd=source)
    run_git("update-index", "--add", "--cacheinfo", f"160000,{head},sub", cwd=source)
    (source / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = ext::sh -c x\n')
    run_git("add", ".gitmodules", cwd=source)
    run_git("commit", "-qm", "a submodule", cwd=source)
    workspace = prepare()
    sub = workspace.repo / "sub"
    assert list(sub.iterdir()) == []
    marker = tmp_path / "marker"
    run_git("init", "-q", cwd=sub)
    (sub / "file").write_text("x\n")
    run_git("add", ".", cwd=sub)
    run_git("commit", "-qm", "x", cwd=sub)
    (sub / "file").write_text("y\n")
    set_traps(sub, marker)
    (workspace.repo / "trap.sh").unlink()
    (workspace.repo / "a.txt").write_text("changed\n")

    assert list(collect(workspace).files) == ["a.txt"]
    assert not marker.exists()


def test_what_earlier_jobs_and_the_daemons_own_environment_say_is_inert(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = tmp_path / "marker"
    home = tmp_path / "owner"
    (home / ".config" / "git").mkdir(parents=True)
    evil = f'[core]\n\tfsmonitor = "touch {marker}"\n\texcludesFile = {home}/ignore\n'
    (home / ".gitconfig").write_text(evil)
    (home / ".config" / "git" / "config").write_text(evil)
    (home / ".config" / "git" / "ignore").write_text("*\n")
    (home / "ignore").write_text("*\n")
    for name, value in {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": f"touch {marker}",
        "GIT_EXTERNAL_DIFF": f"touch {marker}",
        "GIT_DIR": "/nowhere",
        "GIT_ALLOW_PROTOCOL": "ext",
    }.items():
        monkeypatch.setenv(name, value)
    workspace = prepare()
    (workspace.repo / "new").write_text("new\n")
    assert list(collect(workspace).files) == ["new"]
    assert not marker.exists()


def test_a_workspace_replaced_by_a_link_is_not_followed(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    tmp_path: Path,
) -> None:
    workspace = prepare()
    workspace.repo.rename(tmp_path / "elsewhere")
    workspace.repo.symlink_to("/etc")
    with pytest.raises(changed.CollectFailed):
        collect(workspace)


def test_a_git_directory_replaced_by_a_file_is_none(
    prepare: Callable[..., ws.Workspace], collect: Callable[[ws.Workspace], changed.Changes]
) -> None:
    workspace = prepare()
    shutil.rmtree(workspace.repo / ".git")
    (workspace.repo / ".git").write_text("gitdir: /nowhere\n")
    (workspace.repo / "new").write_text("x")
    assert collect(workspace).files == ["new"]


@pytest.mark.parametrize("what", ["missing", "garbage", "link", "fifo"])
def test_an_index_that_is_none_names_nothing(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    what: str,
) -> None:
    workspace = prepare()
    index = workspace.repo / ".git" / "index"
    index.unlink()
    if what == "garbage":
        index.write_bytes(b"DIRC\0\0\0\2" + b"\xff" * 100)
    elif what == "link":
        index.symlink_to("/etc/passwd")
    elif what == "fifo":
        os.mkfifo(index)
    (workspace.repo / "new").write_text("new\n")
    assert list(collect(workspace).files) == ["new"]


def test_links_out_of_the_workspace_are_not_walked(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    tmp_path: Path,
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.log").write_text("secret\n")
    workspace = prepare()
    (workspace.repo / "dir").mkdir()
    (workspace.repo / "dir" / "secret.log").write_text("x\n")
    run_git("add", "-f", "dir/secret.log", cwd=workspace.repo)
    (workspace.repo / "dir" / "secret.log").unlink()
    (workspace.repo / "dir").rmdir()
    (workspace.repo / "dir").symlink_to(outside)
    changes = collect(workspace)
    assert list(changes.files) == ["dir"]
    assert changes.patch is not None
    assert "secret\n" not in changes.patch.read_text()


def test_a_patch_that_is_too_large_is_refused(
    prepare: Callable[..., ws.Workspace],
    collect: Callable[[ws.Workspace], changed.Changes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changed, "MAX_PATCH", 1000)
    workspace = prepare()
    (workspace.repo / "big").write_text("x" * 2000)
    with pytest.raises(changed.CollectFailed, match="bytes"):
        collect(workspace)


def test_a_clone_is_interrupted(git: Git, directory: Path, source: Path) -> None:
    stopped = Git(
        program=git.program,
        home=git.home,
        interrupt=lambda: Interruption.CANCELLED,
        allow_file=True,
        environment=git.environment,
    )
    with pytest.raises(Interrupted):
        ws.prepare(stopped, parse(f"file://{source}"), ref=None, depth=1, directory=directory)


def test_a_local_repository_needs_the_owners_word(directory: Path, source: Path, git: Git) -> None:
    careful = Git(program="git", home=git.home, interrupt=lambda: None, environment=git.environment)
    with pytest.raises(JobFailed, match="not allowed"):
        ws.prepare(careful, parse(f"file://{source}"), ref=None, depth=1, directory=directory)
