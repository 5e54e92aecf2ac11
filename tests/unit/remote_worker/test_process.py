"""Children: what they get, how they end, and that nothing of them is left (attacks 110-112)."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from remote_worker.errors import Interrupted, Interruption, WorkerError
from remote_worker.output import Captured
from remote_worker.process import Command, TimeLimitExceeded, run
from tests.processes import until

# A child that survives what it can: ignores TERM, and a grandchild with a session of its own.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("grandchild", "w").write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)
open("child", "w").write(str(os.getpid()))
print("ready", flush=True)
time.sleep(300)
"""


def command(tmp_path: Path, code: str, **more: object) -> Command:
    given: dict[str, object] = {
        "argv": [sys.executable, "-I", "-S", "-c", code],
        "cwd": tmp_path,
        "environment": {"PATH": os.defpath},
        "time_limit_s": 60.0,
        "grace_s": 0.2,
    }
    return Command(**(given | more))  # type: ignore[arg-type]


def pids(tmp_path: Path) -> list[int]:
    """Return the pids that STUBBORN wrote down, once they are both there."""
    found = [tmp_path / "child", tmp_path / "grandchild"]
    if not all(path.exists() and path.read_text() for path in found):
        return []
    return [int(path.read_text()) for path in found]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_output_and_exit_code(tmp_path: Path) -> None:
    sink = Captured()
    code = run(
        command(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        sink=sink,
    )
    assert (code, sink.out, sink.err) == (3, b"out\n", "err")


def test_a_signal_is_an_exit_code_as_in_a_shell(tmp_path: Path) -> None:
    code = run(command(tmp_path, "import os; os.kill(os.getpid(), 9)"), sink=Captured())
    assert code == 128 + signal.SIGKILL


@pytest.mark.parametrize("program,code", [("no-such-program", 127), ("./plain", 126)])
def test_what_cannot_start_says_so(tmp_path: Path, program: str, code: int) -> None:
    (tmp_path / "plain").write_text("not a program")
    sink = Captured()
    assert run(command(tmp_path, "", argv=[program]), sink=sink) == code
    assert program in sink.err


def test_the_environment_is_what_was_written_out_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAWBRIDGE_TOKEN", "secret")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "touch x")
    sink = Captured()
    environment = {"PATH": os.defpath, "BRIDGE_FENCE": "7"}
    code = "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))"
    run(command(tmp_path, code, environment=environment), sink=sink)
    assert sink.out.decode().strip() == "['BRIDGE_FENCE', 'BRIDGE_RUN', 'PATH']"


def test_no_file_of_the_daemon_is_open_in_the_child(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    with (tmp_path / "secret").open():
        sink = Captured()
        code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        run(command(tmp_path, code), sink=sink)
    # 3 is the listing itself.
    assert sink.out.decode().strip() == "['0', '1', '2', '3']"


def test_stdin_is_the_given_file_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("--not-an-option")
    code = "import sys; print(sys.argv[1:], sys.stdin.read())"
    given, nothing = Captured(), Captured()
    run(command(tmp_path, code, stdin=tmp_path / "in"), sink=given)
    run(command(tmp_path, code), sink=nothing)
    assert (given.out, nothing.out) == (b"[] --not-an-option\n", b"[] \n")


def test_the_child_leads_a_session_of_its_own(tmp_path: Path) -> None:
    sink = Captured()
    run(command(tmp_path, "import os; print(os.getsid(0) == os.getpid())"), sink=sink)
    assert sink.out == b"True\n"


def test_over_time_the_whole_tree_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TimeLimitExceeded):
        run(command(tmp_path, STUBBORN, time_limit_s=1.0), sink=Captured())
    assert all(gone(pid) for pid in pids(tmp_path))
    assert len(pids(tmp_path)) == 2


@pytest.mark.parametrize("why", list(Interruption))
def test_an_interruption_stops_the_whole_tree(tmp_path: Path, why: Interruption) -> None:
    with pytest.raises(Interrupted) as stop:
        run(
            command(tmp_path, STUBBORN),
            sink=Captured(),
            interrupt=lambda: why if pids(tmp_path) else None,
        )
    assert stop.value.why is why
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_polite_child_gets_its_grace(tmp_path: Path) -> None:
    code = """
import signal, sys, time
def end(*_):
    open("tidy", "w").write("yes")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open("ready", "w").close()
time.sleep(300)
"""
    ready = tmp_path / "ready"
    with pytest.raises(Interrupted):
        run(
            command(tmp_path, code, grace_s=30.0),
            sink=Captured(),
            interrupt=lambda: Interruption.CANCELLED if ready.exists() else None,
        )
    assert (tmp_path / "tidy").read_text() == "yes"


def test_nothing_is_started_after_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(
            command(tmp_path, "open('started', 'w')"),
            sink=Captured(),
            interrupt=lambda: Interruption.LEASE_LOST,
        )
    assert not (tmp_path / "started").exists()


def test_what_a_child_leaves_behind_is_swept_and_its_pipe_not_waited_for(tmp_path: Path) -> None:
    # The parent ends well; the grandchild holds stdout open.
    code = STUBBORN.replace("print(", "sys.exit(0) if pids() else print(").replace(
        "import os,", "pids = lambda: os.path.exists('grandchild')\nimport os,"
    )
    code += "\n"
    code = code.replace("time.sleep(300)\n\n", "while not pids(): time.sleep(0.01)\nsys.exit(0)\n")
    assert run(command(tmp_path, code), sink=Captured()) == 0
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_sink_that_gives_up_stops_the_child(tmp_path: Path) -> None:
    code = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with pytest.raises(WorkerError, match="bytes"):
        run(command(tmp_path, code), sink=Captured(limit=1000))


def test_with_the_runner_killed_its_tree_dies_too(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_the_runner() -> None:
        if not killed and pids(tmp_path):
            killed.append(psutil.Process(pids(tmp_path)[0]).ppid())
            os.kill(killed[0], signal.SIGKILL)

    run(command(tmp_path, STUBBORN), sink=Captured(), interrupt=kill_the_runner)
    assert killed
    until(lambda: all(gone(pid) for pid in pids(tmp_path)), 5.0)


def test_with_the_daemon_killed_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    daemon = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from remote_worker.output import Captured
        from remote_worker.process import Command, run
        argv = [sys.executable, "-I", "-S", "stubborn.py"]
        run(Command(argv=argv, cwd=Path.cwd(), environment={}, time_limit_s=60), sink=Captured())
        """
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", daemon], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        found = until(lambda: pids(tmp_path), 20.0)
        process.kill()
        until(lambda: all(gone(pid) for pid in found), 5.0, "the tree is gone")
