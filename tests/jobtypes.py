"""Job types for tests, installed as a stranger would: a package with entry points, on a path."""

from pathlib import Path

MODULE = '''
"""Jobs of the tests."""

import os
import sys
from pathlib import Path

from remote_worker.handlers.context import Context, Outcome


class Nowhere:
    """Takes output and keeps nothing."""

    def write(self, stream: int, chunk: bytes) -> None:
        """Take it."""


def echo(context: Context) -> Outcome:
    """Say what was asked."""
    return Outcome(summary="done", result={"payload": dict(context.job.payload)})


def broken(context: Context) -> Outcome:
    """Fail, as code with a bug does."""
    raise ValueError("broken on purpose")


def child(context: Context) -> Outcome:
    """Run a program with a grandchild until a file is there, and leave a file."""
    gate = str(context.job.payload.get("gate", ""))
    code = (
        "import os, sys, time, pathlib\\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\\n"
        "while sys.argv[1] and not os.path.exists(sys.argv[1]):\\n    time.sleep(0.02)\\n"
    )
    shell = ["/bin/sh", "-c", '"$0" -IS -c "$1" "$2" & wait', sys.executable, code, gate]
    context.run(shell, sink=Nowhere())
    made = context.directory / "made.txt"
    blocks = [n.to_bytes(4, "big") * 2**18 for n in range(context.job.payload.get("mib", 0))]
    made.write_bytes(b"".join(blocks) or b"made")
    return Outcome(summary="done", result={"n": context.job.payload.get("n")},
                   files=(("made.txt", made),))
'''
POINTS = (
    "[drawbridge_worker.handlers]\necho = worker_test_jobs:echo\nchild = worker_test_jobs:child\n"
    "broken = worker_test_jobs:broken\n"
)


def install(folder: Path) -> Path:
    """Put the package into a folder, which is then to be on the path."""
    info = folder / "worker_test_jobs-1.dist-info"
    info.mkdir(parents=True)
    (folder / "worker_test_jobs.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: worker-test-jobs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    return folder
