"""What of an agent's files may be touched: plain files, reached through no link of its making."""

import os
import stat
from pathlib import Path


def is_plain(repo: Path, name: str) -> bool:
    """Say whether a name is a file or link inside the workspace, reached through no link."""
    path = repo / name
    if not name or any(parent.is_symlink() for parent in path.parents if repo in parent.parents):
        return False
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def copy_plain(source: Path, target: Path, *, limit: int) -> bool:
    """Copy a regular file of the agent's, refusing links, pipes and giants."""
    try:
        number = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(number, "rb") as file:
        info = os.fstat(number)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
            return False
        target.write_bytes(file.read(limit))
    return True
