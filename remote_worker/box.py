"""How a program is shut in: what it can see of this machine's files and processes, in which words.

A box is a prefix of the command line: `bwrap`, or util-linux's `unshare` where there is none. Both
give the program a world of its own processes (all of them die with the first) and of this machine's
files without those that are the worker's secrets, other jobs, or credentials of the owner's.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from remote_worker.account import Account

#: Shared memory counts as nobody's, so there is little of it.
_SHM_BYTES = 512 * 1024 * 1024
#: A root without capabilities could make no namespaces of its own, which agents' sandboxes need.
_NOBODY_SPECIAL = 1000
#: Hides what it is told to, then gives the user back whom it came as, with no power over mounts.
#: `-c`: mount(8) would look up the name of what has just been hidden. No exec at the end: the
#: shell is the first process in there, which collects orphans and is deaf to TERM.
_SCRIPT = """
set -eu
uid=$1 gid=$2 shm=$3 work=$4 own=$5 cwd=$6
shift 6
cd "$own"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mount -t tmpfs -o mode=700,size=64k tmpfs "$1"
    else mount --bind /dev/null "$1"; fi
    shift
done
shift
mount -t tmpfs -o "mode=1777,size=$shm" tmpfs /dev/shm
mount -t tmpfs -o mode=700,size=64k tmpfs "$work"
mkdir -p "$own"
mount -c --bind . "$own"
cd "$cwd"
unset PWD OLDPWD
set +e
unshare --user --map-user="$uid" --map-group="$gid" -- "$@"
exit $?
"""


class Kind(StrEnum):
    """What a box is made with."""

    BWRAP = "bwrap"
    UNSHARE = "unshare"
    #: the child sees what the daemon's user sees
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One job's box."""

    kind: Kind
    #: the program that makes it, by its path
    program: str
    #: what is in it but cannot be seen: files are empty, directories too
    hidden: tuple[Path, ...]
    #: the daemon's directory, of which only `own` is there
    work_dir: Path
    #: the job's directory
    own: Path
    #: words before the program, inside
    inside: tuple[str, ...] = ()
    #: whose the processes are; None: the daemon's own user's
    account: Account | None = None

    def give(self, path: Path) -> None:
        """Let who runs in here have what the daemon made for him."""
        if self.account is not None:
            self.account.give(path)

    def argv(self, program: Sequence[str], *, cwd: Path) -> list[str]:
        """Return the command line that runs a program in here."""
        if self.kind is Kind.NONE:
            return [*program]
        words = [*self.inside, *program]
        return self._bwrap(words, cwd) if self.kind is Kind.BWRAP else self._unshare(words, cwd)

    def _bwrap(self, words: Sequence[str], cwd: Path) -> list[str]:
        """Return it for bwrap."""
        masks = [
            part
            for path in self._masked()
            for part in (
                ("--tmpfs", str(path)) if path.is_dir() else ("--ro-bind", os.devnull, str(path))
            )
        ]
        work, own = str(self.work_dir), str(self.own)
        return [
            self.program, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent",
            "--cap-drop", "ALL", "--uid", self._uid(), "--gid", self._gid(),
            "--dev-bind", "/", "/", "--proc", "/proc",
            "--size", str(_SHM_BYTES), "--tmpfs", "/dev/shm", *masks,  # noqa: S108 - in the box alone
            "--tmpfs", work, "--bind", own, own, "--chdir", str(cwd), "--", *words,
        ]  # fmt: skip

    def _unshare(self, words: Sequence[str], cwd: Path) -> list[str]:
        """Return it for unshare."""
        return [
            self.program, "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--mount",
            "--ipc", "--kill-child", "--", "sh", "-c", _SCRIPT, "sh", self._uid(),
            self._gid(), str(_SHM_BYTES), str(self.work_dir), str(self.own), str(cwd),
            *map(str, self._masked()), "--", *words,
        ]  # fmt: skip

    def _masked(self) -> list[Path]:
        """Return what is there to be hidden, files first: what hides a directory hides its files.

        What is in the daemon's own directory is hidden with it.
        """
        real = {path.resolve() for path in self.hidden if path.exists()}
        apart = [path for path in real if self.work_dir not in (path, *path.parents)]
        if self.account is not None:
            # What cannot be reached cannot be hidden either, and need not be.
            apart = [*self.account.sees(apart)]
        return sorted(apart, key=lambda path: (path.is_dir(), path))

    def _uid(self) -> str:
        """Return as whom the user appears inside; files are his own there as well."""
        return str((os.getuid() if self.account is None else self.account.uid) or _NOBODY_SPECIAL)

    def _gid(self) -> str:
        """Return his group in there."""
        return str((os.getgid() if self.account is None else self.account.gid) or _NOBODY_SPECIAL)
