"""How a directory that was an agent's is removed, however deep or shut it was left."""

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def remove(root: Path) -> None:
    """Remove a directory and all in it; what resists is left for the next time.

    Folders are brought up to the root before they are emptied, for one inside of another a
    thousand times is deeper than calls, open files and paths may go.
    """
    try:
        if root.is_symlink() or not root.is_dir():
            root.unlink(missing_ok=True)
            return
        root.chmod(0o700)
        stuck: set[Path] = set()
        number = 0
        while folders := _emptied(root) - stuck:
            for folder in folders:
                try:
                    number = _flatten(folder, root, number)
                except OSError:
                    stuck.add(folder)
        root.rmdir()
    except OSError as error:
        log.warning("cannot remove %s: %s", root, error, extra={"action": "clean"})


def _flatten(folder: Path, root: Path, number: int) -> int:
    """Remove a folder; the folders in it move into the root, named by numbers from this one on."""
    folder.chmod(0o700)
    for inner in _emptied(folder):
        # Whose parent changes must be writable itself.
        inner.chmod(0o700)
        while os.path.lexists(root / str(number)):
            number += 1
        inner.rename(root / str(number))
    folder.rmdir()
    return number


def _emptied(folder: Path) -> set[Path]:
    """Remove all of a folder but its folders, and return those."""
    folders = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.add(Path(entry.path))
            else:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
    return folders
