"""How one edge becomes several processes on one port, which count as one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

#: prometheus_client's own; it is read when that is imported, which is before our arguments are
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_OURS: Final = "drawbridge-figures-"


def share_figures() -> None:
    """Begin anew with a folder in which the processes share their figures, unless there is one."""
    if FOLDER in os.environ:
        return
    named = {FOLDER: tempfile.mkdtemp(prefix=_OURS)}
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, argv, os.environ | named)  # noqa: S606  ourselves, no shell


def forget_figures() -> None:
    """Remove the folder, once all processes have ended; one that somebody else named stays."""
    folder = os.environ.get(FOLDER, "")
    if Path(folder).name.startswith(_OURS):
        shutil.rmtree(folder, ignore_errors=True)
