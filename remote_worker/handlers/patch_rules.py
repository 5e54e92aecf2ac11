"""What a patch must not carry: secrets anywhere, and by publishing, what would run or lead away."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from remote_worker.errors import JobFailed
from remote_worker.git import Git
from remote_worker.output import Captured
from remote_worker.process import STDOUT
from remote_worker.redact import Redactor, SecretScan

_LINK, _GITLINK, _GONE = "120000", "160000", "000000"
#: what `.git` is called where names have eight letters
_SHORT = re.compile(r"git~[0-9]+")
_WORKFLOWS = ".github/workflows"
#: A longer line is looked at in pieces.
_MAX_LINE = 1024 * 1024
_MAX_NAMES = 5
_MAX_TARGET = 4096


class _AddedLines:
    """Looks for secrets in what a diff adds, file by file."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._scan: SecretScan = redactor.scan()
        self._name = b""
        self._partial = b""
        self._stderr = Captured()
        #: names of the files that carry one
        self.found: list[str] = []

    @property
    def err(self) -> str:
        """Return the end of what was written to stderr."""
        return self._stderr.err

    def write(self, stream: int, chunk: bytes) -> None:
        """Take a chunk of a diff."""
        if stream != STDOUT:
            self._stderr.write(stream, chunk)
            return
        *lines, rest = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._line(line + b"\n")
        if len(rest) > _MAX_LINE:
            self._line(rest)
            # What goes on is still the same line.
            rest = rest[:1]
        self._partial = rest

    def close(self) -> None:
        """Look at the rest."""
        self._line(self._partial)
        self._next(b"")

    def _line(self, line: bytes) -> None:
        """Take one line: `diff ` begins the next file, a `+` adds to it, also its name."""
        if line.startswith(b"diff --git "):
            self._next(line.rpartition(b" b/")[2].strip())
        if line.startswith(b"new file mode "):
            # Of an empty file nothing else is said.
            self._scan.feed(self._name + b"\n")
        if line.startswith(b"+"):
            self._scan.feed(line[1:])

    def _next(self, name: bytes) -> None:
        """Finish a file and begin another."""
        if self._scan.close():
            self.found.append(self._redactor.text(self._name.decode(errors="replace")))
        self._scan, self._name = self._redactor.scan(), name.removeprefix(b"b/")


def refuse_secrets(git: Git, redactor: Redactor, *, git_dir: Path, base_commit: str) -> None:
    """Fail the job when what it adds contains a secret; binary files are looked at as well."""
    lines = _AddedLines(redactor)
    git.feed(
        lines, f"--git-dir={git_dir}", "diff-index", "--cached", "--patch", "--text", "--no-color",
        "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", base_commit,
        cwd=git_dir,
    )  # fmt: skip
    lines.close()
    if lines.found:
        names = ", ".join(lines.found[:_MAX_NAMES])
        raise JobFailed(
            f"the changes contain what looks like a secret, in {len(lines.found)} files ({names}):"
            " the patch was not kept",
            error_type="secret_in_patch",
        )


@dataclass(frozen=True, slots=True)
class _Change:
    """One path of a raw diff."""

    old_mode: str
    new_mode: str
    blob: str
    path: str


def refuse_dangers(git: Git, *, git_dir: Path, base_commit: str, workflows_allowed: bool) -> None:
    """Fail the job when what is in the index must not be published."""
    here = f"--git-dir={git_dir}"
    raw = git.text(
        here, "diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", base_commit,
        cwd=git_dir,
    )  # fmt: skip
    for change in _changes(raw):
        why = _danger(change, workflows_allowed=workflows_allowed)
        if why is None and change.new_mode == _LINK:
            target = git.text(here, "cat-file", "blob", change.blob, cwd=git_dir)
            why = _leads_away(change.path, target)
        if why is not None:
            name = change.path.encode(errors="surrogateescape").decode(errors="replace")
            raise JobFailed(f"the patch {why}: {name[:300]}", error_type="patch_refused")


def _changes(raw: str) -> list[_Change]:
    """Read `:old new blob blob status NUL path NUL …`."""
    fields = raw.split("\0")
    changes = []
    for head, path in zip(fields[::2], fields[1::2], strict=False):
        old_mode, new_mode, _, blob, _ = head.removeprefix(":").split(" ")
        changes.append(_Change(old_mode, new_mode, blob, path))
    return changes


def _danger(change: _Change, *, workflows_allowed: bool) -> str | None:
    """Return what is wrong with a path, or None."""
    parts = change.path.casefold().split("/")
    if any(_is_git(part) for part in parts):
        return "touches git's own directory"
    if change.path.startswith("/") or ".." in parts:
        return "leads out of the repository"
    if _GITLINK in (change.old_mode, change.new_mode):
        return "changes a submodule"
    folder = "/".join(parts[:2])
    replaced = change.new_mode == _LINK and "/".join(parts) in (".github", _WORKFLOWS)
    if (folder == _WORKFLOWS or replaced) and not workflows_allowed:
        return "changes what the forge runs by itself (the worker's owner has --allow-workflows)"
    return None


def _is_git(part: str) -> bool:
    """Say whether some file system takes a name for `.git`."""
    bare = "".join(c for c in part if c.isascii()).split(":")[0].rstrip(" .")
    return bare == ".git" or _SHORT.fullmatch(part) is not None


def _leads_away(path: str, target: str) -> str | None:
    """Return what is wrong with a link, or None."""
    after = target.lstrip("./") if target.startswith(".") else target
    if ".." in after.split("/"):
        # Behind a name that is a link itself, it leads elsewhere than it reads.
        return "has a link that goes up again"
    where = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith("/") or where == ".." or where.startswith("../"):
        return "has a link that leads out of the repository"
    if len(target) > _MAX_TARGET or any(_is_git(part) for part in where.casefold().split("/")):
        return "has a link into git's own directory"
    return None
