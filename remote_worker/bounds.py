"""What bounds memory and tasks here: of each job our own count, of all together the kernel's."""

import sys
from collections.abc import Iterator
from pathlib import Path

from remote_worker import isolation
from remote_worker.errors import Misconfigured
from remote_worker.limits import MIB
from remote_worker.settings import Settings

_OWN = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
#: cgroup v1 has a number for what has no bound: all pages there can be
_NO_BOUND = 2**60
#: controller, what it is called in v2 and in v1
_FILES = (("memory", "memory.max", "memory.limit_in_bytes"), ("pids", "pids.max", "pids.max"))


def told(settings: Settings) -> str:
    """Say what holds a job, and what holds the worker with all its jobs."""
    limits = settings.limits
    memory = "no limit" if limits.memory_bytes is None else f"{limits.memory_bytes // MIB} MiB"
    try:
        refused = limits.tasks is not None and isolation.refuses_tasks(settings)
    except Misconfigured:
        # its own gate says what is demanded and not there
        refused = False
    tasks = "no limit of" if limits.tasks is None else str(limits.tasks)
    count = "counted by the worker, several times a second"
    job = f"each job: {memory} of memory and {tasks} tasks, {count}"
    if refused:
        job += "; the kernel refuses tasks beyond that, too"
    return f"{job} (no cgroup of its own); worker and all jobs: {_together()}"


def _together() -> str:
    """Say what the cgroups this process is in allow it and its children."""
    if sys.platform != "linux":
        return "no bound known"
    try:
        own = _OWN.read_text()
    except OSError:
        return "no bound known"
    found = of_cgroups(own, _ROOT)
    words = []
    if "memory" in found:
        words.append(f"{found['memory'] // MIB} MiB of memory")
    if "pids" in found:
        words.append(f"{found['pids']} tasks")
    if not words:
        return "no bound by a cgroup (MemoryMax= and TasksMax= of a unit, or a container, give one)"
    return f"{' and '.join(words)}, by cgroup"


def of_cgroups(own: str, root: Path) -> dict[str, int]:
    """Return the least bound of each controller, from a process's own cgroup up to the root."""
    found: dict[str, int] = {}
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        named, _, path = rest.partition(":")
        for controller, unified, legacy in _FILES:
            if named and controller not in named.split(","):
                continue
            top, name = (root / named, legacy) if named else (root, unified)
            for folder in _upwards(top, path):
                bound = _bound(folder / name)
                if bound is not None:
                    found[controller] = min(bound, found.get(controller, bound))
    return found


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """Return a cgroup and all it is in; one that is not mounted here has no files to read."""
    parts = [part for part in path.split("/") if part]
    for length in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:length])


def _bound(file: Path) -> int | None:
    """Return the number in a file; None when it bounds nothing."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_BOUND else None
