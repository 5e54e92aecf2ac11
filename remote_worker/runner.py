"""Runs one program and lets nothing of it outlive the daemon: here process trees are ended.

The daemon starts this file by its path (isolated, without site-packages, nothing of ours to import)
and holds the other end of the *lifeline*, a pipe nobody else can write to. A byte on it asks for
the end; its closing means that the daemon died. Either way, and also when the program ends by
itself: TERM to its group, a grace, KILL, until no descendant is left. Exit code: the program's, or
128 + signal; 126 or 127 when it could not be started.

    runner.py LIFELINE_FD GRACE_S PROGRAM [ARGUMENT...]
"""

import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is not needed is not imported: this program starts for every command
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: With the daemon dead nobody waits for a tidy end.
_ORPHAN_GRACE_S = 2.0
#: What a program left running in the background gets when the program itself has ended.
_LEFTOVER_GRACE_S = 1.0
#: How long KILL is repeated against a tree that keeps forking.
_KILL_FOR_S = 10.0
_TICK_S = 0.05


def _prctl(option: int, value: int) -> None:
    """Ask Linux for what only Linux has; elsewhere groups and the daemon's own sweep must do."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - a third of this program's start-up, and only used here

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(argv: list[str], runner: int) -> None:
    """Become the program; never returns."""
    os.setsid()
    # The agent has our uid and may kill us: then it dies too.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != runner:
        os._exit(126)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - a list, and no shell is the point
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
        os._exit(126 if isinstance(error, PermissionError) else 127)


def _descendants() -> list[int]:
    """Return every process below this one; orphans come back to us because we are the subreaper."""
    children: dict[int, list[int]] = {}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib costs start-up
    except OSError:
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib costs start-up
                # The name in parentheses may contain anything, also parentheses.
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state != b"Z":
            children.setdefault(int(parent), []).append(pid)
    found: list[int] = []
    below = [os.getpid()]
    while below:
        below = [pid for parent in below for pid in children.get(parent, [])]
        found += below
    return found


class _Tree:
    """The program and all that came of it."""

    def __init__(self, program: int) -> None:
        self.program = program
        self.status: int | None = None

    def reap(self) -> None:
        """Collect whoever ended, the program or an orphan of its."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.program:
                self.status = status

    def signal(self, number: int) -> bool:
        """Signal the group and every descendant; say whether anybody was there."""
        hit = False
        # With the program reaped its group number is nobody's; without /proc it is all we have.
        if self.status is None or sys.platform != "linux":
            hit = _send(os.killpg, self.program, number)
        for pid in _descendants():
            hit |= _send(os.kill, pid, number)
        return hit

    def end(self, grace_s: float) -> None:
        """TERM, the grace, then KILL until nothing is left."""
        deadline = time.monotonic() + grace_s
        left = self.signal(signal.SIGTERM)
        while left and time.monotonic() < deadline:
            time.sleep(_TICK_S)
            self.reap()
            left = self.status is None or bool(_descendants())
        deadline = time.monotonic() + _KILL_FOR_S
        while self.signal(signal.SIGKILL) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
            self.reap()
        self.reap()
        if _descendants():
            # Nobody is told that a tree is gone while it is not: the daemon sweeps for us.
            os.kill(os.getpid(), signal.SIGKILL)


def _send(call: "Callable[[int, int], None]", target: int, number: int) -> bool:
    """Signal somebody who may be gone already."""
    try:
        call(target, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main(arguments: list[str]) -> int:
    """Run the program to its end, whoever ends it."""
    lifeline, grace_s, argv = int(arguments[0]), float(arguments[1]), arguments[2:]
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - os takes no keyword here
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    runner = os.getpid()
    program = os.fork()
    if program == 0:
        _start(argv, runner)
    tree = _Tree(program)
    while tree.status is None:
        ready, _, _ = select.select([lifeline, wake], [], [])
        if lifeline in ready:
            tree.end(grace_s if os.read(lifeline, 1) else min(grace_s, _ORPHAN_GRACE_S))
            break
        terminated = set(os.read(wake, 64)) & {signal.SIGTERM, signal.SIGINT}
        tree.reap()
        if terminated and tree.status is None:
            tree.end(grace_s)
            break
    tree.end(_LEFTOVER_GRACE_S)
    if tree.status is None:
        return 128 + signal.SIGKILL
    return (
        os.waitstatus_to_exitcode(tree.status) % 256
        if os.WIFEXITED(tree.status)
        else (128 + os.WTERMSIG(tree.status))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
