"""What keeps a job's child in its place on this host, found out by trying."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from remote_worker import codex
from remote_worker.account import Account
from remote_worker.box import Box, Kind
from remote_worker.errors import Misconfigured
from remote_worker.settings import Settings

_LIMIT_S = 30.0
_USAGE_ERROR = 2
#: What a sandbox says when it is the sandbox that failed, and not the program in it.
_REFUSED = re.compile(r"^(?:bwrap|sandbox-exec|codex-linux-sandbox)\b.*$", re.MULTILINE)

#: Where people keep credentials; a job's HOME is its own, and it has no business in the owner's.
OWNERS = (
    ".ssh", ".gnupg", ".netrc", ".git-credentials", ".config/git/credentials", ".config/gh",
    ".config/gcloud", ".aws", ".azure", ".kube", ".docker/config.json", ".npmrc", ".pypirc",
)  # fmt: skip
NO_BOX_WAY_OUT = (
    "install bubblewrap (or util-linux 2.38) and allow user namespaces; else run the worker as a"
    " user that owns nothing but its token, or in a machine of its own"
)
#: The first that counts processes by user namespace: before, a limit would count the owner's too.
_NPROC_KERNEL = (5, 14)
_PR_SET_DUMPABLE = 4


class Answer(StrEnum):
    """What a trial showed."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial and its last word."""

    answer: Answer
    detail: str


def codex_sandbox(settings: Settings, environment: Mapping[str, str], *, cwd: Path) -> Trial:
    """Try Codex's own sandbox; a Codex that has no such command leaves it unknown."""
    account = settings.run_as
    usage = _run([settings.codex, "sandbox", "--help"], environment, cwd, account)
    if usage is None or usage.returncode != 0 or "codex sandbox" not in usage.stdout.lower():
        return Trial(Answer.UNKNOWN, "this Codex has no `codex sandbox` to try it with")
    done = _run(codex.sandbox_argv(settings), environment, cwd, account)
    if done is None:
        return Trial(Answer.UNKNOWN, "`codex sandbox` did not end")
    if done.returncode == 0:
        return Trial(Answer.YES, "works")
    if done.returncode == _USAGE_ERROR:
        return Trial(Answer.UNKNOWN, "this Codex has another `codex sandbox` than we know")
    said = done.stdout + done.stderr
    match = _REFUSED.search(said)
    last = match[0] if match else (said.strip().splitlines() or ["without a word"])[-1]
    return Trial(Answer.NO, last[:300])


def box(settings: Settings, *, own: Path) -> Box:
    """Return what shuts in a job whose directory is `own`.

    Raises Misconfigured when the owner demands a kind that does not work here.
    """
    kind, program = _found(settings.isolation, settings.path, settings.run_as)
    tasks = settings.limits.tasks
    counter = _counter(settings)
    return Box(
        kind=kind,
        program=program,
        hidden=(
            *(path for path in (settings.token_file, settings.git_token_file) if path is not None),
            *(settings.owner_home / name for name in OWNERS),
            *settings.hide,
        ),
        work_dir=settings.work_dir.resolve(),
        own=own.resolve(),
        inside=() if counter is None else (counter, f"--nproc={tasks}", "--"),
        account=settings.run_as,
    )


def _counter(settings: Settings) -> str | None:
    """Return the program by which the kernel counts the tasks in a box; None if it cannot."""
    known = settings.limits.tasks is not None and _kernel() >= _NPROC_KERNEL
    return shutil.which("prlimit", path=settings.path) if known else None


def hides(settings: Settings, path: Path) -> bool:
    """Say whether a job would not see what lies there, because it is the daemon's own directory."""
    kind, _ = _found(settings.isolation, settings.path, settings.run_as)
    work, path = settings.work_dir.resolve(), path.resolve()
    return kind is not Kind.NONE and work in (path, *path.parents)


def refuses_tasks(settings: Settings) -> bool:
    """Say whether the kernel itself refuses a job's child tasks beyond its limit."""
    if is_root() and settings.run_as is None:
        # of root it counts nothing
        return False
    kind, _ = _found(settings.isolation, settings.path, settings.run_as)
    return kind is Kind.NONE or _counter(settings) is not None


def verdict(settings: Settings) -> tuple[str, list[str]]:
    """Say what holds a child on this host, and the way out of what does not.

    Raises Misconfigured when the owner demands a kind that does not work here.
    """
    account = settings.run_as
    kind, _ = _found(settings.isolation, settings.path, account)
    holes = [NO_BOX_WAY_OUT] if kind is Kind.NONE else []
    if is_root() and account is None:
        holes.append(
            "run the worker as a user of its own, or name one for its jobs with --run-as:"
            " what root may do, a job may do"
        )
    if kind is not Kind.NONE:
        seen = f"{kind}: a job sees neither the worker's secrets nor its process, nor other jobs"
    elif account is not None:
        seen = f"NOT shut in: a job can read what {account.name} can, other jobs too"
    else:
        seen = (
            "NOT shut in: a job can read what this user can, the worker's token and your keys too"
        )
    who = f"user {account.name}" if account else "root" if is_root() else "this user"
    namespaces = user_namespaces(settings)
    held = f"{processes()}; user namespaces: {namespaces}; children are {who}"
    return f"{seen}; {held}", holes


@cache
def _found(wanted: str, path: str, account: Account | None) -> tuple[Kind, str]:
    """Return the first kind that works, and its program; asked once, for a host does not change."""
    if wanted == Kind.NONE:
        return Kind.NONE, ""
    kinds = (Kind.BWRAP, Kind.UNSHARE) if wanted == "auto" else (Kind(wanted),)
    for one in kinds:
        program = shutil.which(one, path=path)
        if sys.platform == "linux" and program is not None and _hides(one, program, path, account):
            return one, program
    if wanted != "auto":
        raise Misconfigured(
            f"--isolation {wanted} does not work here: install it and allow user namespaces, or"
            " say auto and see what `drawbridge-worker check` finds"
        )
    return Kind.NONE, ""


def _hides(kind: Kind, program: str, path: str, account: Account | None) -> bool:
    """Try a box: a secret must be empty in it, a process of ours unseen, and it must end."""
    with tempfile.TemporaryDirectory(prefix="drawbridge-box-") as name:
        place = Path(name).resolve()
        own, secret, left = place / "work" / "own", place / "secret", place / "work" / "left"
        own.mkdir(parents=True)
        secret.write_text("secret")
        left.write_text("left")
        trial = Box(
            kind=kind, program=program, hidden=(secret,), work_dir=own.parent, own=own,
            account=account,
        )  # fmt: skip
        trial.give(place)
        unseen = f"test ! -s {secret} && test ! -e {left} && test ! -e /proc/{os.getpid()}/fd/0"
        argv = trial.argv(["sh", "-c", f"{unseen} && : >{own}/written"], cwd=own)
        done = _run(argv, {"PATH": path}, own, account)
        return done is not None and done.returncode == 0 and (own / "written").exists()


def _kernel() -> tuple[int, int]:
    """Return the kernel's version."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def shut() -> None:
    """Let no other process of this user look into the daemon's memory, files and environment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def sandbox_refusal(output: str) -> str | None:
    """Return the line by which a sandbox says that it did not even start a command."""
    match = _REFUSED.match(output)
    return match[0][:300] if match else None


def user_namespaces(settings: Settings) -> Answer:
    """Say whether this user may make user namespaces, which sandboxes on Linux are made of."""
    unshare = shutil.which("unshare", path=settings.path)
    if sys.platform != "linux" or unshare is None:
        return Answer.UNKNOWN
    argv = [unshare, "--user", "--map-root-user", "true"]
    done = _run(argv, {"PATH": settings.path}, Path("/"), settings.run_as)
    return Answer.UNKNOWN if done is None else Answer.NO if done.returncode else Answer.YES


def processes() -> str:
    """Say by what a child's process tree is held."""
    subreaper = sys.platform == "linux"
    return "own session, killed with the daemon" + (", subreaper" if subreaper else "")


def is_root() -> bool:
    """Say whether jobs would be root."""
    return os.getuid() == 0


def _run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    account: Account | None = None,
) -> "subprocess.CompletedProcess[str] | None":
    """Run a short program; None when it cannot be, or does not end."""
    try:
        return subprocess.run(
            argv, env=dict(environment), cwd=cwd, capture_output=True, text=True, errors="replace",
            timeout=_LIMIT_S, check=False, stdin=subprocess.DEVNULL,
            user=account.uid if account else None, group=account.gid if account else None,
            extra_groups=[] if account else None,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
