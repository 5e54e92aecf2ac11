"""Child processes of the stack: the only place that knows how one is started, watched and ended.

Each child leads a session of its own, so a Ctrl-C in the terminal reaches us alone and the order
of stopping is ours: last in, first out.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

logger = logging.getLogger(__name__)

POLL_S: Final = 0.05
READY_S: Final = 60.0
TAIL_LINES: Final = 20
#: A child may fail this often within the window; then something is wrong that no restart mends.
DEATHS: Final = 5
WINDOW_S: Final = 60.0
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Program:
    """What a child is started as."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    log: Path
    ready: Callable[[], bool] = field(repr=False)
    grace_s: float = 10.0
    #: When to ask a second time, of programs that take the first for "finish what you have".
    insist_s: float | None = None


class StartFailed(Exception):
    """A process of the stack did not come up."""


class KeepsDying(Exception):
    """A process of the stack was restarted too often."""


class Stopped(Exception):
    """The stack was asked to stop while it was starting."""


class Child:
    """One program and the process that runs it now."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.deaths: list[float] = []
        #: When to start it again; None while it runs or its death was not seen yet.
        self.restart_at: float | None = None
        self._asked = False
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        program = self.program
        with program.log.open("ab") as log:
            return subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(program.environment),
                cwd=program.folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is its session's too."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    def restart(self) -> None:
        """Start the program again after its end."""
        self._sweep([])
        self._process = self._spawn()
        self.restart_at = None

    def ask(self) -> None:
        """Ask it to end, once."""
        if self.exit_code is None and not self._asked:
            self._asked = True
            self._process.terminate()

    def stop(self) -> None:
        """See it out, and kill it and all it started when it stays; may be repeated."""
        descendants = _descendants(self.pid)
        self.ask()
        if self.program.insist_s is not None and not self._ends(self.program.insist_s):
            self._process.terminate()
        if not self._ends(self.program.grace_s):
            logger.warning("%s did not stop in time and is killed", self.program.name)
            descendants += _descendants(self.pid)
            self._process.kill()
            self._process.wait()
        self._sweep(descendants)

    def _ends(self, wait_s: float) -> bool:
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _sweep(self, descendants: list[psutil.Process]) -> None:
        # Nobody is left in its group unless it ended without looking after its own children.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for descendant in descendants:
            with suppress(psutil.NoSuchProcess):
                # psutil compares start times, so a reused pid is left alone.
                descendant.kill()

    def tail(self) -> str:
        """Return the end of its log."""
        lines = self.program.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])

    def obituary(self) -> str:
        """Say how it ended and where to read on."""
        name, log = self.program.name, self.program.log
        return f"{name} ended with exit code {self.exit_code}; the end of {log}:\n{self.tail()}"


class Supervisor:
    """The children of one stack, in the order of their start."""

    def __init__(
        self,
        record: Path,
        *,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._stopping = stopping
        self._clock = clock
        self._children: list[Child] = []
        #: How many were there before each start: what was started together goes together.
        self._tiers: list[int] = []

    @property
    def pids(self) -> dict[str, int]:
        """The process of each program just now."""
        return {child.program.name: child.pid for child in self._children}

    def start(self, *programs: Program) -> None:
        """Start programs beside one another and wait until each of them is ready."""
        fresh = []
        self._tiers.append(len(self._children))
        for program in programs:
            self._refuse_when_stopping()
            fresh.append(Child(program))
            self._children.append(fresh[-1])
            self._write_record()
        deadline = self._clock() + READY_S
        for child in fresh:
            self._wait_until_ready(child, deadline)

    def _wait_until_ready(self, child: Child, deadline: float) -> None:
        while not child.program.ready():
            self._refuse_when_stopping()
            if child.exit_code is not None:
                raise StartFailed(child.obituary())
            if self._clock() > deadline:
                name, log = child.program.name, child.program.log
                raise StartFailed(
                    f"{name} was not ready in time; the end of {log}:\n{child.tail()}"
                )
            self._stopping.wait(POLL_S)

    def _refuse_when_stopping(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def check(self) -> None:
        """Restart what has died, once its backoff is over; give up on what keeps dying."""
        for child in self._children:
            if child.exit_code is None:
                continue
            now = self._clock()
            if child.restart_at is None:
                self._mourn(child, now)
            elif now >= child.restart_at:
                child.restart()
                self._write_record()
                logger.info("%s runs again as process %d", child.program.name, child.pid)

    def _mourn(self, child: Child, now: float) -> None:
        child.deaths = [at for at in child.deaths if at > now - WINDOW_S] + [now]
        # killed means killed by somebody: a restart mends that, however often they do it
        if len(child.deaths) > DEATHS and child.exit_code != -signal.SIGKILL:
            raise KeepsDying(child.obituary())
        pause = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (len(child.deaths) - 1))
        child.restart_at = now + pause
        logger.warning("restarting in %g s: %s", pause, child.obituary())

    def stop(self) -> None:
        """Stop every child, the last started first; may be repeated.

        What was started together is asked together and seen out one by one.
        """
        while self._children:
            while self._tiers and self._tiers[-1] >= len(self._children):
                self._tiers.pop()
            for child in reversed(self._children[self._tiers[-1] :]):
                child.ask()
            self._children[-1].stop()
            self._children.pop()
            self._write_record()
            # Without children the record is not ours: another stack may hold the folder.
            if not self._children:
                self._record.unlink()

    def _write_record(self) -> None:
        """Keep who runs, so that the next stack can end them should we be killed.

        The file is replaced whole: whoever reads it, or kills us meanwhile, sees one truth.
        """
        running = []
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                started = psutil.Process(child.pid).create_time()
                running.append({"name": child.program.name, "pid": child.pid, "started": started})
        draft = self._record.with_suffix(".draft")
        draft.write_text(json.dumps(running), encoding="utf-8")
        draft.replace(self._record)


def end_leftovers(record: Path) -> list[str]:
    """End what a stack that was killed has left running, and return the names."""
    if not record.exists():
        return []
    ended = []
    for entry in json.loads(record.read_text(encoding="utf-8")):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(entry["pid"])
            # The same pid with another start is a stranger's.
            if abs(process.create_time() - entry["started"]) < 1.0:
                family = [process, *_descendants(process.pid)]
                for one in family:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(family, timeout=5.0)
                ended.append(str(entry["name"]))
    record.unlink()
    return ended


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
