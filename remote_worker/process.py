"""How a child is started, watched and stopped; `runner.py` is its other half.

Every program the worker runs for a job goes through here: own session, an environment that is
written out in full by the caller, output taken as it comes and never waited for.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import psutil

from remote_worker import runner
from remote_worker.box import Box, Kind
from remote_worker.clock import Clock, steady
from remote_worker.disk import DiskWatch
from remote_worker.errors import Interrupted, Interruption, WorkerError
from remote_worker.limits import TOO_LARGE, UNLIMITED, LimitExceeded, Limits, TimeLimitExceeded

#: TERM, then this long, then KILL.
GRACE_S = 10.0
#: What the runner may need beyond the grace before it is itself taken for broken.
_RUNNER_MARGIN_S = 12.0
_TICK_S = 0.1
_CHUNK = 65536
#: What is in the pipes when the child is gone is read for so long at most.
_LAST_WORDS_S = 5.0
#: Marks every process of one run, so that what slipped away from the runner can be found.
_MARK = "BRIDGE_RUN"

STDOUT, STDERR = 1, 2

#: Asked again and again while a child runs: why it must stop, or None.
Interrupt = Callable[[], Interruption | None]


class Sink(Protocol):
    """Takes what a child writes; called from one thread."""

    def write(self, stream: int, chunk: bytes) -> None:
        """Take a chunk of STDOUT or STDERR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run."""

    argv: Sequence[str]
    cwd: Path
    #: the whole environment of the child: nothing of the daemon's own is added
    environment: Mapping[str, str]
    time_limit_s: float
    stdin: Path | None = None
    grace_s: float = GRACE_S
    limits: Limits = UNLIMITED
    #: the directory whose size is limited
    workspace: Path | None = None
    #: what it can see of this machine; None: all that the daemon can
    box: Box | None = None


def run(
    command: Command, *, sink: Sink, interrupt: Interrupt = lambda: None, clock: Clock = steady
) -> int:
    """Run a program to its end and return its exit code.

    When this returns or raises, no process of it is left. Raises Interrupted and
    LimitExceeded after the child was stopped for that reason.
    """
    why = interrupt()
    if why is not None:
        raise Interrupted(why)
    mark = uuid.uuid4().hex
    lifeline, theirs = socket.socketpair()
    with lifeline:
        with theirs:
            child = _start(command, lifeline=theirs.fileno(), mark=mark)
        pump = _Pump(child, sink)
        disk = DiskWatch(command.workspace, limits=command.limits)
        try:
            _watch(_Watched(child, pump, disk, lifeline), command, interrupt, clock)
        finally:
            # Closing the lifeline ends the tree also when we are leaving by an exception.
            lifeline.shutdown(socket.SHUT_WR)
            _await_runner(child, command.grace_s)
            if child.returncode < 0 or sys.platform != "linux":
                # A runner that ended by itself has left nothing; one that was killed may have.
                sweep(mark)
            disk.close()
            pump.finish()
        if pump.error is not None:
            raise pump.error
        _raise_breach(child.returncode, _last_word(lifeline), command.limits)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _start(command: Command, *, lifeline: int, mark: str) -> subprocess.Popen[bytes]:
    """Start a program's runner."""
    with contextlib.ExitStack() as stack:
        stdin = (
            subprocess.DEVNULL
            if command.stdin is None
            else stack.enter_context(command.stdin.open("rb"))
        )
        return subprocess.Popen(
            _runner_argv(command, lifeline),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=command.cwd,
            env={**command.environment, _MARK: mark},
            start_new_session=True,
            pass_fds=(lifeline,),
        )


def _runner_argv(command: Command, lifeline: int) -> list[str]:
    """Return the command line of the runner: isolated, so nothing in the cwd can reach it."""
    limits, box = command.limits, command.box
    boxed = box is not None and box.kind is not Kind.NONE
    rules = {
        "cpu": limits.cpu_s,
        "fsize": limits.file_bytes,
        "nofile": limits.open_files,
        "tasks": limits.tasks,
        "memory": limits.memory_bytes,
        "boxed": 1 if boxed else None,
        "uid": box.account.uid if box is not None and box.account is not None else None,
        "gid": box.account.gid if box is not None and box.account is not None else None,
    }
    spelled = ",".join(f"{name}={value}" for name, value in rules.items() if value is not None)
    argv = command.argv if box is None else box.argv(command.argv, cwd=command.cwd)
    return [
        *(sys.executable, "-I", "-S", str(runner.__file__)),
        *(str(lifeline), str(command.grace_s), spelled),
        *argv,
    ]


def _last_word(lifeline: socket.socket) -> str:
    """Return which rule the runner ended the tree for, or nothing."""
    lifeline.settimeout(0)
    try:
        return lifeline.recv(64).decode()
    except OSError:
        return ""


def _raise_breach(code: int, rule: str, limits: Limits) -> None:
    """Raise what a child was ended for, by its runner or by the kernel."""
    if rule == "memory":
        text = f"its processes took more than {limits.memory_bytes} bytes of memory"
        raise LimitExceeded(text, error_type="memory_limit_exceeded")
    if rule == "tasks":
        text = f"there were more than {limits.tasks} processes and threads"
        raise LimitExceeded(text, error_type="task_limit_exceeded")
    if limits.cpu_s is not None and code == 128 + signal.SIGXCPU:
        text = f"a process took more than {limits.cpu_s} s of CPU time"
        raise LimitExceeded(text, error_type="cpu_limit_exceeded")
    if limits.file_bytes is not None and code == 128 + signal.SIGXFSZ:
        text = f"a file grew beyond {limits.file_bytes} bytes"
        raise LimitExceeded(text, error_type="file_limit_exceeded")


@dataclass(frozen=True, slots=True)
class _Watched:
    """A running child and what is known of it."""

    child: subprocess.Popen[bytes]
    pump: "_Pump"
    disk: DiskWatch
    lifeline: socket.socket


def _watch(watched: _Watched, command: Command, interrupt: Interrupt, clock: Clock) -> None:
    """Wait for the end, or bring it about."""
    deadline = clock() + command.time_limit_s
    child = watched.child
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_TICK_S)
            return
        why = interrupt()
        over = clock() >= deadline
        full = watched.disk.breach
        if why is None and not over and full is None and watched.pump.error is None:
            continue
        with contextlib.suppress(OSError):
            watched.lifeline.send(b"T")
        _await_runner(child, command.grace_s)
        if why is not None:
            raise Interrupted(why)
        if full is not None:
            raise LimitExceeded(full, error_type=TOO_LARGE)
        if over:
            raise TimeLimitExceeded(f"still running after {command.time_limit_s:g} s")
        return


def _await_runner(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """Give the runner its time; if it has none of it, kill it (its tree dies with it)."""
    try:
        child.wait(timeout=grace_s + _RUNNER_MARGIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def sweep(mark: str) -> int:
    """Kill what still carries the mark of a run and return how many that were."""
    mine = os.getuid()
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if mine in (0, process.uids().real) and process.environ().get(_MARK) == mark:
                process.kill()
                killed += 1
    return killed


class _Pump:
    """Reads both outputs in a thread of its own until they end or the child has."""

    def __init__(self, child: subprocess.Popen[bytes], sink: Sink) -> None:
        if child.stdout is None or child.stderr is None:
            raise ValueError("the child's output is not piped")
        self._streams: dict[IO[bytes], int] = {child.stdout: STDOUT, child.stderr: STDERR}
        self._sink = sink
        self._until: float | None = None
        #: what the sink could not bear; the child is stopped for it
        self.error: OSError | WorkerError | None = None
        self._thread = threading.Thread(target=self._read, name="output", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Take what is there and stop, even while somebody we cannot see holds the pipe open."""
        self._until = time.monotonic() + _LAST_WORDS_S
        self._thread.join()
        for stream in self._streams:
            stream.close()

    def _read(self) -> None:
        """Move chunks until the end."""
        try:
            with selectors.DefaultSelector() as selector:
                for stream in self._streams:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ)
                while selector.get_map():
                    until = self._until
                    ready = selector.select(timeout=_TICK_S if until is None else 0)
                    if until is not None and (not ready or time.monotonic() > until):
                        return
                    for key, _ in ready:
                        self._move(selector, key.fileobj)
        except (OSError, WorkerError) as error:
            self.error = error

    def _move(self, selector: selectors.BaseSelector, stream: object) -> None:
        """Move one chunk of one stream."""
        for known, number in self._streams.items():
            if known is stream:
                chunk = os.read(known.fileno(), _CHUNK)
                if chunk:
                    self._sink.write(number, chunk)
                else:
                    selector.unregister(known)
