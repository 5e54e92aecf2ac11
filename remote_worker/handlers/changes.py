"""What a run left in its workspace, as one patch against the commit it started from.

Configuration, attributes, hooks and nested repositories of the workspace are only ever data here:
the patch is computed by a git directory made after the agent has ended, in which nothing but our
own configuration has ever been.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_worker.errors import WorkerError
from remote_worker.git import Git, GitFailed
from remote_worker.handlers.plain_files import copy_plain, is_plain
from remote_worker.handlers.workspace import Workspace, borrow

#: As much as an artifact may have.
MAX_PATCH = 100 * 1024 * 1024
_MAX_INDEX = 256 * 1024 * 1024

#: The git directory whose index holds what the run left.
COLLECTED = "collect.git"


class CollectFailed(WorkerError):
    """The changes of a run could not be written down."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run changed."""

    #: None when nothing was
    patch: Path | None
    files: Sequence[str]
    #: nested repositories that were taken as plain files
    unnested: int


def collect(git: Git, workspace: Workspace, *, directory: Path, patch: Path) -> Changes:
    """Write down everything the run changed: new files, staged work and commits alike.

    Ignored files are left out unless the run staged or committed them.
    """
    try:
        return _collect(git, workspace, directory=directory, patch=patch)
    except (GitFailed, OSError, RecursionError) as error:
        raise CollectFailed(f"the changes could not be collected: {error}") from error


def _collect(git: Git, workspace: Workspace, *, directory: Path, patch: Path) -> Changes:
    """Do it with a git directory that the agent has never seen."""
    repo = workspace.repo
    if not stat.S_ISDIR(repo.lstat().st_mode):
        raise CollectFailed("the workspace was replaced by something else")
    unnested = _unnest(repo, directory / "nested")
    clean = directory / COLLECTED
    # An agent without a sandbox could have made one for us.
    clean.mkdir()
    git.have(clean)
    git.text("init", "--quiet", "--bare", "--template=", "--", str(clean), cwd=directory)
    borrow(clean, workspace.base_git)
    here = (f"--git-dir={clean}", f"--work-tree={repo}")
    git.text(*here, "read-tree", workspace.base_commit, cwd=repo)
    git.text(*here, "add", "--all", "--", ".", cwd=repo)
    _add_forced(git, here, repo=repo, clean=clean)
    against = ("diff-index", "--cached", "--no-renames", "--ignore-submodules=all")
    names = git.text(*here, *against, "--name-only", "-z", workspace.base_commit, cwd=repo)
    files = [
        name.encode(errors="surrogateescape").decode(errors="replace")
        for name in names.split("\0")
        if name
    ]
    if not files:
        return Changes(patch=None, files=(), unnested=unnested)
    git.to_file(
        patch, *here, *against, "--patch", "--binary", "--full-index", "--no-color",
        "--no-ext-diff", "--no-textconv", workspace.base_commit, cwd=repo, limit=MAX_PATCH,
    )  # fmt: skip
    return Changes(patch=patch, files=files, unnested=unnested)


def _unnest(repo: Path, attic: Path) -> int:
    """Move every nested `.git` away, so that git sees plain files and runs nothing of theirs.

    In a nested repository git would run `status`, with that repository's configuration.
    """
    moved = 0
    for folder, folders, files in os.walk(repo, followlinks=False):
        for name in [name for name in (*folders, *files) if name.casefold() == ".git"]:
            if Path(folder) == repo and name == ".git":
                # It may be a file by now; git reads neither.
                folders[:] = [one for one in folders if one != name]
                continue
            attic.mkdir(exist_ok=True)
            Path(folder, name).rename(attic / str(moved))
            moved += 1
            if name in folders:
                folders.remove(name)
    return moved


def _add_forced(git: Git, here: tuple[str, ...], *, repo: Path, clean: Path) -> None:
    """Add the ignored files that the run staged or committed: its index names them.

    The index is read from a copy, by the clean git; one it cannot read names nothing.
    """
    copy = clean / "theirs"
    if not copy_plain(repo / ".git" / "index", copy, limit=_MAX_INDEX):
        return
    git.have(copy)
    try:
        listing = git.text(
            *here, "ls-files", "-z", cwd=repo, environment={"GIT_INDEX_FILE": str(copy)}
        )
    except GitFailed:
        return
    ours = set(git.text(*here, "ls-files", "-z", cwd=repo).split("\0"))
    forced = [name for name in listing.split("\0") if name not in ours and is_plain(repo, name)]
    if forced:
        wanted = clean / "forced"
        wanted.write_bytes("\0".join(forced).encode(errors="surrogateescape"))
        git.have(wanted)
        git.text(
            "--literal-pathspecs", *here, "add", "--force",
            f"--pathspec-from-file={wanted}", "--pathspec-file-nul", cwd=repo,
        )  # fmt: skip
