"""How large a job's directory has grown: looked at again and again while a child runs."""

import os
import threading
import time
from pathlib import Path

from remote_worker.limits import Limits

_FIRST_S = 0.5
#: Looking takes a tenth of one disk's time at most.
_REST = 9.0
_BLOCK = 512


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
    size, files, folders = 0, 0, [str(directory)]
    while folders and not (stop is not None and stop.is_set()):
        try:
            entries = os.scandir(folders.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
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
