"""Processes started by tests: the only place that knows how one is started, watched and ended."""

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Final, Self, TypeVar

import psutil
import pytest

T = TypeVar("T")

#: What a test's process never inherits: the settings of whoever runs the tests.
FOREIGN: Final = "DRAWBRIDGE_"
#: how long one is given to end by itself before it is killed
STOP_S: Final = 15.0
#: Nobody waits longer than it takes; a failure may take its time on a machine that others use.
PATIENCE_S: Final = 60.0
TAIL_LINES: Final = 60

GUARD: Final = """
import os, shutil, signal, sys
groups, folders = set(), set()
for line in sys.stdin:
    sign, what = line[0], line[1:].strip()
    known = groups if what.isdigit() else folders
    known.add(what) if sign == "+" else known.discard(what)
for group in groups:
    try:
        os.killpg(int(group), signal.SIGKILL)
    except ProcessLookupError:
        pass
for folder in folders:
    shutil.rmtree(folder, ignore_errors=True)
"""


def until(
    condition: Callable[[], T | None],
    timeout: float = PATIENCE_S,
    what: str | Callable[[], str] = "the condition",
) -> T:
    """Return the first true answer of the condition; fail the test when there is none in time."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            said = what() if callable(what) else what
            pytest.fail(f"{said}: still not so after {timeout:g} s (last answer: {answer!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


@cache
def _guard() -> IO[str]:
    """Start the process that, when the tests die unawares, ends what they started."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-c", GUARD],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert guard.stdin is not None
    stdin = guard.stdin

    def dismiss() -> None:
        stdin.close()
        guard.wait(timeout=STOP_S)

    atexit.register(dismiss)
    return stdin


def guard(what: int | Path) -> None:
    """Have this process group killed, or this folder removed, should the tests die unawares."""
    print(f"+{what}", file=_guard(), flush=True)


def unguard(what: int | Path) -> None:
    """Take back `guard`."""
    print(f"-{what}", file=_guard(), flush=True)


class Process:
    """A process in a session of its own, with its output in a file."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout_apart: bool = False,
        user: int | None = None,
        group: int | None = None,
    ) -> None:
        self.argv = [os.fspath(arg) for arg in argv]
        self.log = log
        self.out = log.with_suffix(".out") if stdout_apart else log
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        self._known: set[psutil.Process] = set()
        with log.open("ab") as errors, self.out.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=inherited | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
                cwd=cwd,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        guard(self.pid)

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group's and its session's."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """Return what it has written to its log so far (stderr alone when stdout is apart)."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stdout(self) -> str:
        """Return what it has written to stdout so far, when stdout is apart."""
        return self.out.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the end of its log."""
        return "\n".join(self.output().splitlines()[-lines:])

    def wait_for(self, pattern: str, timeout: float = PATIENCE_S) -> re.Match[str]:
        """Wait until its output matches the pattern; fail at once when it ended without."""
        found = re.compile(pattern, re.MULTILINE)
        return self.until(
            lambda: found.search(self.output()) or found.search(self.stdout()),
            timeout,
            what=f"output of {self} matches {pattern!r}",
        )

    def until(
        self,
        condition: Callable[[], T | None],
        timeout: float = PATIENCE_S,
        what: str = "the condition",
    ) -> T:
        """Wait for the condition; fail at once when the process has ended without it."""

        def met_or_ended() -> tuple[T | None] | None:
            ended = self.returncode is not None
            answer = condition()
            return (answer,) if answer or ended else None

        (answer,) = until(met_or_ended, timeout, lambda: f"{what}; {self} says:\n{self.tail()}\n")
        if not answer:
            pytest.fail(f"{what}: {self} ended first, with {self.returncode}:\n{self.tail()}")
        return answer

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self} has not ended after {timeout:g} s:\n{self.tail()}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing when it has already ended."""
        if self.returncode is None:
            self._remember()
            self._popen.send_signal(number)

    def terminate(self, timeout: float = PATIENCE_S) -> int:
        """Ask it to end, as an init system would, and return its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> int:
        """Kill it alone, as the kernel would: what it had started stays until `close`."""
        self.send(signal.SIGKILL)
        return self.wait()

    def close(self, gently: signal.Signals = signal.SIGTERM) -> None:
        """End it and all it started; may be called twice."""
        self.send(gently)
        if self.returncode is None:
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(STOP_S)
        # The usual case is that nobody is left in its group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for child in self._known:
            if child.is_running():
                child.kill()
        unguard(self.pid)

    def _remember(self) -> None:
        """Note its descendants while it lives; afterwards nobody knows whose they were."""
        try:
            self._known |= set(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"`{' '.join(self.argv[:4])}` (pid {self.pid})"


class Starter:
    """Starts processes that log into one folder, and ends them all."""

    def __init__(self, folder: Path, started: list[Process]) -> None:
        self._folder = folder
        self._started = started
        self._numbers = count(1)

    def __call__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout_apart: bool = False,
    ) -> Process:
        """Start one."""
        name = name or f"{Path(argv[0]).name}-{next(self._numbers)}"
        log = self._folder / f"{name}.log"
        self._started.append(Process(argv, log=log, env=env, cwd=cwd, stdout_apart=stdout_apart))
        return self._started[-1]

    def close(self) -> None:
        """End them, the last one first."""
        for one in reversed(self._started):
            one.close()
