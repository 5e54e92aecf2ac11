"""What this machine can do, found out by looking, and what its owner says it can."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: stands for what is found here
AUTO = "auto"
_DOCKER_SOCKET = Path("/var/run/docker.sock")
_ROCM = Path("/dev/kfd")
_LIMIT_S = 10.0
_SYSTEMS = {"darwin": "macos"}


def told(
    words: Iterable[str], labels: Iterable[str], *, programs: Iterable[str], path: str
) -> tuple[str, ...]:
    """Return the capabilities to claim with: the owner's words, with `auto` for what is here."""
    found: list[str] = []
    for word in words:
        found += probed(programs, path=path) if word == AUTO else [word]
    return tuple(dict.fromkeys([*found, *labels]))


def probed(programs: Iterable[str], *, path: str) -> Iterator[str]:
    """Yield what is found: programs, a container engine, a graphics card, system and machine."""
    for program in programs:
        if shutil.which(program, path=path):
            yield Path(program).name
    if shutil.which("docker", path=path) and os.access(_DOCKER_SOCKET, os.W_OK):
        yield "docker"
    if _has_gpu(path):
        yield "gpu"
    yield _SYSTEMS.get(sys.platform, sys.platform)
    yield platform.machine().lower()


def _has_gpu(path: str) -> bool:
    """Look for a graphics card that computes."""
    smi = shutil.which("nvidia-smi", path=path)
    if smi is None:
        return _ROCM.exists()
    try:
        done = subprocess.run(
            [smi, "-L"], capture_output=True, timeout=_LIMIT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout
