"""Whose a job's processes are when the daemon is root: another user's, and so are the job's files.

What that user may not read needs no box to be hidden: the token, the owner's keys, the daemon.
"""

import os
import pwd
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from remote_worker.errors import Misconfigured

_LIMIT_S = 30.0
_SEES = 'for path do if test -e "$path"; then echo 1; else echo 0; fi; done'


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user that jobs are run as."""

    name: str
    uid: int
    gid: int
    home: Path

    def give(self, root: Path) -> None:
        """Let the user have what the daemon made for a job; a link is given, not where it leads.

        A file that has a second name is left alone: the other might be anywhere. Each name is
        looked up in the open folder that holds it: another job of this user's may put a link in
        a folder's place meanwhile, and the daemon is root.
        """
        above = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._give(root.name, above)
            if not stat.S_ISDIR(os.lstat(root.name, dir_fd=above).st_mode):
                return
            for _, folders, files, folder in os.fwalk(root.name, dir_fd=above):
                for name in (*folders, *files):
                    self._give(name, folder)
        finally:
            os.close(above)

    def _give(self, name: str, folder: int) -> None:
        """Give one name of an open folder."""
        info = os.lstat(name, dir_fd=folder)
        if info.st_uid != self.uid and (stat.S_ISDIR(info.st_mode) or info.st_nlink == 1):
            os.chown(name, self.uid, self.gid, dir_fd=folder, follow_symlinks=False)

    def sees(self, paths: Iterable[Path]) -> set[Path]:
        """Return which of the paths this user can reach, by the word of the kernel."""
        asked = list(paths)
        done = subprocess.run(
            ["/bin/sh", "-c", _SEES, "sh", *asked], user=self.uid, group=self.gid, extra_groups=[],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={}, cwd="/", timeout=_LIMIT_S,
            check=True,
        )  # fmt: skip
        answers = done.stdout.split()
        return {path for path, answer in zip(asked, answers, strict=True) if answer == b"1"}


def find(name: str) -> Account:
    """Return the account of a name or number; Misconfigured when jobs cannot be run as it."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise Misconfigured(
            f"--run-as {name!r}: there is no such user (useradd --system --create-home {name})"
        ) from None
    if entry.pw_uid == 0:
        raise Misconfigured(f"--run-as {name!r} is root: name a user that owns nothing else here")
    if os.getuid() not in (0, entry.pw_uid):
        raise Misconfigured(
            f"--run-as {name!r}: only root can run jobs as somebody else; leave it out, and jobs"
            " run as this user"
        )
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=Path(entry.pw_dir))
