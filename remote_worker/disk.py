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
        self._bytes = limits.workspace_bytes
        self._files = limits.workspace_files
        self._stop = threading.Event()
        #: what has become too much; the child is stopped for it
        self.breach: str | None = None
        self._thread: threading.Thread | None = None
        if directory is not None and (self._bytes is not None or self._files is not None):
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
            self._look()
            pause = max(_FIRST_S, _REST * (time.monotonic() - begun))

    def _look(self) -> None:
        """Add up until the end or until it is too much; what vanishes meanwhile counts nothing."""
        size, files, folders = 0, 0, [str(self._directory)]
        while folders and not self._stop.is_set():
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
            self._judge(size, files)
            if self.breach is not None:
                return

    def _judge(self, size: int, files: int) -> None:
        """Say what is too much."""
        if self._bytes is not None and size > self._bytes:
            self.breach = f"the job's directory grew beyond {self._bytes} bytes"
        elif self._files is not None and files > self._files:
            self.breach = f"the job's directory holds more than {self._files} files"
