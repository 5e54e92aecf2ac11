"""Where a job works: a fresh clone of a repository at a ref.

Two directories a job. `repo/` is the agent's, and hostile from the moment the agent starts.
`base.git` holds the starting commit, and no agent has ever written there.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from remote_worker import trees
from remote_worker.errors import JobFailed
from remote_worker.git import Git, GitFailed
from remote_worker.handlers.clone_cache import CloneCache
from remote_worker.repository import Repository

#: Cloning is bounded too: a slot is not for sale by a slow server.
CLONE_LIMIT_S = 1800.0
_BASE_REF = "refs/drawbridge/base"
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Narrower than git: what a refspec, an option or a revision could be read out of is no ref here.
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@#+=,-]{0,199}")
_HEADS, _TAGS = "refs/heads/", "refs/tags/"
# What no second try changes. Everything else about a remote may be the network, and is retried.
_FINAL = re.compile(
    r"not found|authentication failed|could not read username|does not appear to be a git"
    r"|fsck|access denied|permission denied|transport '.*' not allowed|mismatched algorithms"
    r"|unable to update url base from redirection|nonexistent object|couldn't find remote ref"
    r"|not our ref",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A prepared workspace."""

    repo: Path
    base_git: Path
    base_commit: str
    #: the branch the job started from, None for a tag or a commit
    branch: str | None


@dataclass(frozen=True, slots=True)
class _Start:
    """What to fetch."""

    refspec: str
    branch: str | None


def check_ref(ref: str) -> None:
    """Refuse what could be anything but the name of a branch, a tag or a commit."""
    bad = ("..", "//", "@{", "/.", ".lock/")
    if (
        not _REF.fullmatch(ref)
        or any(part in ref for part in bad)
        or ref.endswith(("/", ".", ".lock"))
        # To git the commit of zeros is the absence of one.
        or (_SHA.fullmatch(ref) and not ref.strip("0"))
    ):
        raise JobFailed(
            "ref is no name of a branch, tag or commit this worker takes", error_type="invalid_ref"
        )


def prepare(
    git: Git,
    repository: Repository,
    *,
    ref: str | None,
    depth: int,
    directory: Path,
    cache: CloneCache | None = None,
) -> Workspace:
    """Clone a repository at a ref into a new workspace."""
    base, repo = directory / "base.git", directory / "repo"
    try:
        git.text("init", "--quiet", "--bare", "--template=", "--", str(base), cwd=directory)
        if ref is not None and not _SHA.fullmatch(ref):
            git.text("check-ref-format", f"{_HEADS}{_short(ref)}", cwd=directory)
    except GitFailed as error:
        raise JobFailed(f"no clone could be begun: {error}", error_type="invalid_ref") from None
    try:
        start = _resolve(git, repository, ref, cwd=base)
        if cache is not None:
            cache.seed(git, repository, base=base)
        fetch(git, repository, start.refspec, depth=depth, base=base)
        commit = git.text(
            f"--git-dir={base}", "rev-parse", "--verify", "--end-of-options",
            f"{_BASE_REF}^{{commit}}", cwd=base,
        ).strip()  # fmt: skip
    except GitFailed as error:
        raise _not_cloned(repository, error, base) from None
    if cache is not None:
        cache.keep(git, repository, base=base, commit=commit)
    try:
        _check_out(git, repository, base=base, repo=repo, commit=commit, branch=start.branch)
    except GitFailed as error:
        trees.remove(repo)
        kind = error.limit or "checkout_failed"
        raise JobFailed(f"checkout failed: {error}", error_type=kind) from None
    return Workspace(repo=repo, base_git=base, base_commit=commit, branch=start.branch)


def _not_cloned(repository: Repository, error: GitFailed, base: Path) -> JobFailed:
    """Return the failure of a clone, and give back the room it has taken."""
    shutil.rmtree(base, ignore_errors=True)
    too_slow = error.limit == "time_limit_exceeded"
    return JobFailed(
        f"{repository.canonical} could not be cloned: {error}",
        error_type="clone_failed" if error.limit is None or too_slow else error.limit,
        retryable=too_slow or (error.limit is None and not _FINAL.search(str(error))),
    )


def discard(workspace: Workspace) -> None:
    """Give back the room of a workspace nobody will look into again."""
    for path in (workspace.repo, workspace.base_git):
        trees.remove(path)


def _short(ref: str) -> str:
    """Return a ref without its namespace."""
    return ref.removeprefix(_HEADS).removeprefix(_TAGS)


def _resolve(git: Git, repository: Repository, ref: str | None, *, cwd: Path) -> _Start:
    """Find out what a ref is: a commit by its form, else a branch before a tag, as git prefers."""
    if ref is not None and _SHA.fullmatch(ref):
        return _Start(refspec=ref, branch=None)
    short = "HEAD" if ref is None else _short(ref)
    names = (["HEAD"] if ref is None else
             [name for name in (f"{_HEADS}{short}", f"{_TAGS}{short}")
              if not ref.startswith("refs/") or name == ref])  # fmt: skip
    listing = git.text(
        "ls-remote", "--symref", "--", repository.url, *names, cwd=cwd, time_limit_s=120
    )
    rows = [line.split("\t") for line in listing.splitlines()]
    found = {row[1] for row in rows if len(row) == 2 and not row[0].startswith("ref: ")}  # noqa: PLR2004 - value, name
    name = next((name for name in names if name in found), None)
    if name is None:
        raise GitFailed(f"couldn't find remote ref {ref or 'HEAD'}: no such branch or tag")
    if name == "HEAD":
        target = next(
            (row[0].removeprefix("ref: ") for row in rows if row[0].startswith("ref: ")), ""
        )
        branch = target.removeprefix(_HEADS) if target.startswith(_HEADS) else None
        # The server chose this name; it becomes an argument below.
        return _Start("HEAD", branch if branch and _REF.fullmatch(branch) else None)
    return _Start(name, short if name.startswith(_HEADS) else None)


def fetch(git: Git, repository: Repository, refspec: str, *, depth: int, base: Path) -> None:
    """Bring a starting commit; one the server gives only as part of a branch, by its branch."""
    options = ("--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
    shallow = (f"--depth={depth}",) if depth else ()

    def bring(*args: str) -> None:
        git.text(
            f"--git-dir={base}", "fetch", *options, *args, cwd=base, time_limit_s=CLONE_LIMIT_S
        )

    try:
        bring(*shallow, "--", repository.url, f"+{refspec}:{_BASE_REF}")
    except GitFailed as error:
        if not _SHA.fullmatch(refspec) or "not our ref" not in str(error):
            raise
        bring("--", repository.url, "+refs/heads/*:refs/drawbridge/heads/*")
        git.text(f"--git-dir={base}", "update-ref", _BASE_REF, refspec, cwd=base)


def _check_out(
    git: Git, repository: Repository, *, base: Path, repo: Path, commit: str, branch: str | None
) -> None:
    """Make the workspace: it borrows the objects of the base and has a history of its own."""
    git.text("init", "--quiet", "--template=", "--", str(repo), cwd=base)
    dot_git = repo / ".git"
    borrow(dot_git, base)
    if (base / "shallow").exists():
        shutil.copyfile(base / "shallow", dot_git / "shallow")
    git.text("config", "--local", "remote.origin.url", repository.url, cwd=repo)
    target = ("--detach", commit) if branch is None else ("-B", branch, commit)
    git.text("checkout", "--quiet", "--force", *target, "--", cwd=repo)


def borrow(git_dir: Path, base: Path) -> None:
    """Let a git directory read the objects of another."""
    info = git_dir / "objects" / "info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "alternates").write_text(f"{base / 'objects'}\n")
