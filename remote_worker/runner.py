"""Runs one program and lets nothing of it outlive the daemon: here process trees are ended.

The daemon starts this file by its path (isolated, without site-packages, nothing of ours to import)
and holds the other end of the *lifeline*, a pipe nobody else can write to. A byte on it asks for
the end; its closing means that the daemon died. Either way, and also when the program ends by
itself: TERM to its group, a grace, KILL, until no descendant is left. Exit code: the program's, or
128 + signal; 126 or 127 when it could not be started.

    runner.py LIFELINE_FD GRACE_S RULES PROGRAM [ARGUMENT...]

RULES is `name=number,…`: `cpu`, `fsize`, `nofile` of each process; `tasks` and `memory` of all
together, for which the tree is looked at again and again and killed at once, the lifeline told
which it was; `uid` and `gid` of whom the program is when root runs it; `boxed=1` when the program
is a box, which must not be sent the TERM of what is in it.
"""

import contextlib
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
_LOOK_S = 0.25
_HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
#: A turn is needed also among thousands of its children.
_NICE = 5
#: When memory ends, the kernel takes the child and not the daemon.
_OOM_SCORE = b"500"
_PAGE = resource.getpagesize()
#: Fields of /proc/<pid>/stat behind the name.
_PARENT, _TASKS = 1, 17


def _prctl(option: int, value: int) -> None:
    """Ask Linux for what only Linux has; elsewhere groups and the daemon's own sweep must do."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - a third of this program's start-up, and only used here

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(argv: list[str], rules: dict[str, int], runner: int) -> None:
    """Become the program; never returns."""
    os.setsid()
    os.nice(_NICE)
    _be_first_to_go()
    if "uid" in rules:
        # It imports a module, which that user may not be able to read.
        os.get_exec_path()
        os.setgroups([])
        os.setgid(rules["gid"])
        os.setuid(rules["uid"])
    # The agent has our uid and may kill us: then it dies too. A change of user would undo it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != runner:
        os._exit(126)
    for number in (*_HEARD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    _limit(rules)
    os.umask(0o077)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - a list, and no shell is the point
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
        os._exit(126 if isinstance(error, PermissionError) else 127)


def _be_first_to_go() -> None:
    """Stand in front of the daemon when the kernel looks for somebody to kill for memory."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:  # noqa: PTH123
        file.write(_OOM_SCORE)


def _limit(rules: dict[str, int]) -> None:
    """Set what the kernel itself limits; never above what it already allows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, number, more in (
        # The soft one ends it with a signal that says why, the hard one by KILL.
        ("cpu", resource.RLIMIT_CPU, 5),
        ("fsize", resource.RLIMIT_FSIZE, 0),
        ("nofile", resource.RLIMIT_NOFILE, 0),
    ):
        if name in rules:
            ceiling = resource.getrlimit(number)[1]
            most = sys.maxsize if ceiling == resource.RLIM_INFINITY else ceiling
            wanted = rules[name]
            resource.setrlimit(number, (min(wanted, most), min(wanted + more, most)))
    # Of root the kernel counts nothing; in a box it counts by itself, and only what is in there.
    if "tasks" in rules and "boxed" not in rules and os.getuid() != 0:
        most = _tasks_of_user() + rules["tasks"]
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _tasks_of_user() -> int:
    """Return how many processes and threads this user has already."""
    mine = 0
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - see above
    except OSError:
        return 0
    for pid in pids:
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():  # noqa: PTH116 - see above
                mine += len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - see above
        except OSError:
            continue
    return mine


def _descendants() -> list[int]:
    """Return every process below this one; orphans come back to us because we are the subreaper."""
    return [pid for pid, _ in _tree_below()]


def _tree_below() -> "list[tuple[int, int]]":
    """Return every process below this one, with the number of its threads."""
    children: dict[int, list[tuple[int, int]]] = {}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib costs start-up
    except OSError:
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib costs start-up
                # The name in parentheses may contain anything, also parentheses.
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            entry = (pid, int(fields[_TASKS]))
            children.setdefault(int(fields[_PARENT]), []).append(entry)
    found: list[tuple[int, int]] = []
    below = [(os.getpid(), 1)]
    while below:
        below = [entry for parent, _ in below for entry in children.get(parent, [])]
        found += below
    return found


def _memory(pids: list[int]) -> int:
    """Return the bytes that processes hold together, what they share counted once if need be."""
    own, shared = 0, 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as statm:  # noqa: PTH123 - pathlib costs start-up
                _, resident, common = statm.read().split()[:3]
        except (OSError, ValueError):
            continue
        own += int(resident) - int(common)
        shared = max(shared, int(common))
    return (own + shared) * _PAGE


def _shares(pids: list[int]) -> int:
    """Return the same by the kernel's own division of what is shared: exact, and dear."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:  # noqa: PTH123 - see above
                lines = rollup.read().splitlines()
        except OSError:
            # Whoever cannot be looked into counts in full.
            total += _memory([pid])
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))
    return total


def _breach(rules: dict[str, int]) -> "str | None":
    """Return which rule the tree breaks."""
    if not rules.keys() & {"tasks", "memory"}:
        return None
    tree = _tree_below()
    if "tasks" in rules and sum(tasks for _, tasks in tree) > rules["tasks"]:
        return "tasks"
    pids = [pid for pid, _ in tree]
    # Forked processes seem to hold what they only share, so a breach is looked at again.
    too_much = "memory" in rules and _memory(pids) > rules["memory"]
    return "memory" if too_much and _shares(pids) > rules["memory"] else None


class _Tree:
    """The program and all that came of it."""

    def __init__(self, program: int, *, boxed: bool) -> None:
        self.program = program
        self.status: int | None = None
        self._boxed = boxed

    def reap(self) -> bool:
        """Collect whoever ended, the program or an orphan of its; say whether the program has."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                return self.status is not None
            if pid == self.program:
                self.status = status

    def _alone(self) -> bool:
        """Tell whether nobody is left, by one call: each orphan below us has become our child."""
        if sys.platform != "linux" or self.status is None:
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def signal(self, number: int) -> bool:
        """Signal the group and every descendant; say whether anybody was there."""
        hit = False
        spared = self.program if self._boxed and number == signal.SIGTERM else None
        # With the program reaped its group number is nobody's; without /proc it is all we have.
        if (self.status is None or sys.platform != "linux") and spared is None:
            hit = _send(os.killpg, self.program, number)
        for pid in _descendants():
            hit |= pid == spared or _send(os.kill, pid, number)
        return hit

    def end(self, grace_s: float) -> None:
        """TERM, the grace, then KILL until nothing is left."""
        if self._alone():
            return
        deadline = time.monotonic() + grace_s
        left = grace_s > 0 and self.signal(signal.SIGTERM)
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
    lifeline, grace_s, argv = int(arguments[0]), float(arguments[1]), arguments[3:]
    pairs = (rule.partition("=") for rule in arguments[2].split(",") if rule)
    rules = {name: int(number) for name, _, number in pairs}
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - os takes no keyword here
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in _HEARD:
        signal.signal(number, lambda *_: None)
    runner = os.getpid()
    program = os.fork()
    if program == 0:
        _start(argv, rules, runner)
    tree = _Tree(program, boxed="boxed" in rules)
    _attend(tree, rules, lifeline=lifeline, wake=wake, grace_s=grace_s)
    tree.end(_LEFTOVER_GRACE_S)
    if tree.status is None:
        return 128 + signal.SIGKILL
    return (
        os.waitstatus_to_exitcode(tree.status) % 256
        if os.WIFEXITED(tree.status)
        else (128 + os.WTERMSIG(tree.status))
    )


def _attend(
    tree: _Tree, rules: dict[str, int], *, lifeline: int, wake: int, grace_s: float
) -> None:
    """Wait for the program's end, or bring it about."""
    while True:
        ready, _, _ = select.select([lifeline, wake], [], [], _LOOK_S)
        if lifeline in ready:
            tree.end(grace_s if os.read(lifeline, 1) else min(grace_s, _ORPHAN_GRACE_S))
            return
        signals = set(os.read(wake, 64)) if wake in ready else set()
        if tree.reap():
            return
        if signals & {signal.SIGTERM, signal.SIGINT}:
            tree.end(grace_s)
            return
        broken = _breach(rules)
        if broken is not None:
            # No grace: whoever takes too much would go on taking it.
            tree.end(0.0)
            os.write(lifeline, broken.encode())
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
