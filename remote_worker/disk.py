"""How large a job's directory has grown: looked at again and again while a child runs."""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from remote_worker.limits import Limits

_FIRST_S = 0.5
#: Looking takes a tenth of one disk's time at most.
_REST = 9.0
_BLOCK = 512
#: Nobody shuts so many folders against himself but to hide what is in them.
_MOST_SHUT = 200

Listing = contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]


class DiskWatch:
    """Looks at a directory in a thread of its own until closed; without one it does nothing."""

    def __init__(self, directory: Path | None, *, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._stop = threading.Event()
        #: what has become too much; the child is stopped for it
        self.breach: str | None = None
        self._thread: threading.Thread | None = None
        if directory is not None and (limits.workspace_bytes or limits.workspace_files):
            self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Look, and rest in proportion."""
        pause = _FIRST_S
        while not self._stop.wait(pause) and self.breach is None:
            begun = time.monotonic()
            if self._directory is not None:
                self.breach = breach(self._directory, limits=self._limits, stop=self._stop)
            pause = max(_FIRST_S, _REST * (time.monotonic() - begun))


def breach(directory: Path, *, limits: Limits, stop: threading.Event | None = None) -> str | None:
    """Add up until the end or until it is too much; what vanishes meanwhile counts nothing."""
    with _Opened() as opened:
        return _breach(directory, limits, stop, opened)


def _breach(
    directory: Path, limits: Limits, stop: threading.Event | None, opened: "_Opened"
) -> str | None:
    """Do it."""
    size, files, folders = 0, 0, [str(directory)]
    while folders and not (stop is not None and stop.is_set()):
        try:
            entries = opened.scan(folders.pop())
        except OSError:
            continue
        if entries is None:
            return f"more than {_MOST_SHUT} folders of the job are shut to their own owner"
        with entries as listing:
            for entry in listing:
                files += 1
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    # Blocks, not lengths: a file full of holes takes no room.
                    size += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                except OSError:
                    continue
        if limits.workspace_bytes is not None and size > limits.workspace_bytes:
            return f"the job's directory grew beyond {limits.workspace_bytes} bytes"
        if limits.workspace_files is not None and files > limits.workspace_files:
            return f"the job's directory holds more than {limits.workspace_files} files"
    return None


class _Opened:
    """Folders that their owner had shut, open for as long as one look takes."""

    def __init__(self) -> None:
        self._shut: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The innermost first: who shuts a folder loses the way to those in it.
        for number, mode in reversed(self._shut):
            with contextlib.suppress(OSError):
                _change(number, mode)
            os.close(number)

    def scan(self, folder: str) -> Listing | None:
        """List a folder, a shut one too; None when there are too many of those."""
        try:
            return os.scandir(folder)
        except PermissionError:
            if not hasattr(os, "O_PATH"):
                raise
        if len(self._shut) >= _MOST_SHUT:
            return None
        # By its number: another might be put in its place while we change it.
        number = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        self._shut.append((number, stat.S_IMODE(os.fstat(number).st_mode)))
        _change(number, stat.S_IRWXU)
        return os.scandir(folder)


def _change(number: int, mode: int) -> None:
    """Change the mode of what a number stands for."""
    Path(f"/proc/self/fd/{number}").chmod(mode)
