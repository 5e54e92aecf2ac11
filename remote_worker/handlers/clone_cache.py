"""Objects of earlier clones, kept so that the next one fetches only what is new.

`workdirMode: reuse` reuses objects and nothing else. The workspace is as new as ever; what an
earlier job left in its own is gone with it. A kept clone is made before the agent starts, never
worked in, and read only as a remote is: by a transfer that checks every object's name, into a new
git directory. Which commit a job starts from says the host alone.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from remote_worker.git import Git, GitFailed
from remote_worker.repository import Repository

log = logging.getLogger(__name__)

#: The least recently used go first.
_MAX_CLONES = 20
_KEPT = "refs/drawbridge/kept"
_LIMIT_S = 600.0


class CloneCache:
    """The kept clones of one worker."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def seed(self, git: Git, repository: Repository, *, base: Path) -> bool:
        """Bring what is kept of a repository into a new git directory; say whether there was."""
        kept = self._path(repository)
        if not kept.is_dir():
            return False
        with self._locked(kept, fcntl.LOCK_SH):
            try:
                _transfer(git, kept, base, refspec=f"+{_KEPT}:{_KEPT}")
            except GitFailed as error:
                # The next `keep` makes a better one.
                log.warning("kept clone unusable: %s", error, extra={"action": "reuse"})
                shutil.rmtree(kept, ignore_errors=True)
                return False
        return True

    def keep(self, git: Git, repository: Repository, *, base: Path, commit: str) -> None:
        """Keep a starting commit and what it is made of, in place of what was kept before."""
        kept = self._path(repository)
        draft = self._root / f"{uuid.uuid4().hex}.tmp"
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
            git.text("init", "--quiet", "--bare", "--template=", "--", str(draft), cwd=self._root)
            _transfer(git, base, draft, refspec=f"+{commit}:{_KEPT}")
            with self._locked(kept, fcntl.LOCK_EX):
                shutil.rmtree(kept, ignore_errors=True)
                draft.rename(kept)
            self._forget_old()
        except (GitFailed, OSError) as error:
            log.warning("clone not kept: %s", error, extra={"action": "reuse"})
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _path(self, repository: Repository) -> Path:
        """Return where a repository's clone is kept; its name is no part of a path."""
        digest = hashlib.sha256(repository.canonical.encode()).hexdigest()[:32]
        return self._root / f"{digest}.git"

    @contextmanager
    def _locked(self, kept: Path, how: int) -> Iterator[None]:
        """Let nobody replace what is being read."""
        number = os.open(kept.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(number, how)
            yield
        finally:
            os.close(number)

    def _forget_old(self) -> None:
        """Forget the clones that were kept the longest time ago."""
        clones = sorted(self._root.glob("*.git"), key=lambda path: path.stat().st_mtime)
        for path in clones[:-_MAX_CLONES]:
            with self._locked(path, fcntl.LOCK_EX):
                shutil.rmtree(path, ignore_errors=True)


def _transfer(git: Git, source: Path, target: Path, *, refspec: str) -> None:
    """Fetch from one directory into another, as from a host: every object is checked."""
    local = replace(git, allow_file=True, credential=None)
    local.text(
        f"--git-dir={target}", "-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-tags",
        "--no-recurse-submodules", "--no-write-fetch-head", "--update-shallow", "--",
        f"file://{source}", refspec, cwd=target, time_limit_s=_LIMIT_S,
        environment={"GIT_NO_LAZY_FETCH": "1"},
    )  # fmt: skip
