"""What keeps a job's child in its place on this host, found out by trying."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from remote_worker import codex
from remote_worker.settings import Settings

_LIMIT_S = 30.0
_USAGE_ERROR = 2
#: What a sandbox says when it is the sandbox that failed, and not the program in it.
_REFUSED = re.compile(r"^(?:bwrap|sandbox-exec|codex-linux-sandbox)\b.*$", re.MULTILINE)


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
    usage = _run([settings.codex, "sandbox", "--help"], environment, cwd)
    if usage is None or usage.returncode != 0 or "codex sandbox" not in usage.stdout.lower():
        return Trial(Answer.UNKNOWN, "this Codex has no `codex sandbox` to try it with")
    done = _run(codex.sandbox_argv(settings), environment, cwd)
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
    done = _run(argv, {"PATH": settings.path}, Path("/"))
    return Answer.UNKNOWN if done is None else Answer.NO if done.returncode else Answer.YES


def processes() -> str:
    """Say by what a child's process tree is held."""
    subreaper = sys.platform == "linux"
    return "own session, killed with the daemon" + (", subreaper" if subreaper else "")


def is_root() -> bool:
    """Say whether jobs would be root."""
    return os.getuid() == 0


def _run(
    argv: Sequence[str], environment: Mapping[str, str], cwd: Path
) -> "subprocess.CompletedProcess[str] | None":
    """Run a short program; None when it cannot be, or does not end."""
    try:
        return subprocess.run(
            argv, env=dict(environment), cwd=cwd, capture_output=True, text=True, errors="replace",
            timeout=_LIMIT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
