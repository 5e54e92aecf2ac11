"""What a child may take: each limit is reached by a real process, and nothing of it is left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker import isolation
from remote_worker.box import Box, Kind
from remote_worker.errors import Interrupted, Interruption, Misconfigured
from remote_worker.limits import MIB, LimitExceeded, Limits
from remote_worker.output import Captured
from remote_worker.process import Command, run
from remote_worker.settings import Settings
from tests.processes import until
from tests.services import missing
from tests.unit.remote_worker.test_process import STUBBORN, gone

Boxed = Callable[..., Box]

# Forks as long as it may, and no further than a test machine bears.
BOMB = """
import os, time
for _ in range(400):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(300)
    except OSError:
        pass
time.sleep(300)
"""
HOG = """
import time
hoard = []
for _ in range(64):
    hoard.append(bytearray(b"x" * (16 << 20)))
    time.sleep(0.02)
time.sleep(300)
"""
FILLER = """
import os, time
for n in range(64):
    with open(f"f{n}", "wb") as file:
        file.write(os.urandom(1 << 20))
time.sleep(300)
"""


@pytest.fixture(params=[Kind.BWRAP, Kind.UNSHARE, Kind.NONE])
def boxed(
    request: pytest.FixtureRequest, make_settings: Callable[..., Settings], tmp_path: Path
) -> Boxed:
    """Make a box of each kind around a job's directory."""
    kind: Kind = request.param

    def make(**more: object) -> Box:
        settings = make_settings(isolation=str(kind), **more)
        try:
            isolation.verdict(settings)
        except Misconfigured as error:
            missing(str(error))
        own = settings.work_dir / "jobs" / "this.1"
        other = settings.work_dir / "jobs" / "other.1"
        for place in (own, other):
            place.mkdir(parents=True)
        (other / "file").write_text("of another job")
        return isolation.box(settings, own=own)

    return make


def command(box: Box, code: str, **more: object) -> Command:
    given: dict[str, object] = {
        "argv": [sys.executable, "-I", "-S", "-c", code],
        "cwd": box.own,
        "environment": {"PATH": os.environ["PATH"]},
        "time_limit_s": 60.0,
        "grace_s": 0.2,
        "box": box,
    }
    return Command(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code,limits,error_type",
    [
        (BOMB, Limits(tasks=60), "task_limit_exceeded"),
        (HOG, Limits(memory_bytes=200 * MIB), "memory_limit_exceeded"),
        (FILLER, Limits(workspace_bytes=8 * MIB), "workspace_too_large"),
        (FILLER, Limits(workspace_files=8), "workspace_too_large"),
        ("while True: pass", Limits(cpu_s=1), "cpu_limit_exceeded"),
    ],
    ids=["tasks", "memory", "workspace", "files", "cpu"],
)
def test_who_takes_too_much_is_ended(
    boxed: Boxed, code: str, limits: Limits, error_type: str
) -> None:
    box = boxed(limits=limits)
    with pytest.raises(LimitExceeded) as stop:
        run(command(box, code, limits=limits, workspace=box.own), sink=Captured())
    assert stop.value.error_type == error_type


def test_memory_that_is_only_shared_is_counted_once(boxed: Boxed) -> None:
    code = """
import os, time
hoard = bytearray(b"x" * (100 << 20))
for _ in range(4):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
time.sleep(2)
"""
    limits = Limits(memory_bytes=300 * MIB)
    assert run(command(boxed(limits=limits), code, limits=limits), sink=Captured()) == 0


def test_the_kernels_own_limits_hold(boxed: Boxed) -> None:
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def reach(what):
    try:
        what()
    except OSError as error:
        return error.errno
def files():
    hoard = [open("/dev/null") for _ in range(500)]
print(reach(lambda: open("big", "wb").write(b"x" * (3 << 20))), reach(files))
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    limits = Limits(open_files=100, file_bytes=2 * MIB)
    sink = Captured()
    run(command(boxed(limits=limits), code, limits=limits), sink=sink)
    assert sink.out == b"27 24\n(0, 0)\n"


def test_a_file_too_large_is_said(boxed: Boxed) -> None:
    limits = Limits(file_bytes=MIB)
    box = boxed(limits=limits)
    with pytest.raises(LimitExceeded, match="beyond 1048576 bytes"):
        run(
            command(box, "", argv=["dd", "if=/dev/zero", "of=big", "bs=1M", "count=4"],
                    limits=limits),
            sink=Captured(),
        )  # fmt: skip


def test_in_a_box_what_is_the_workers_cannot_be_seen(
    boxed: Boxed, token_file: Path, tmp_path: Path
) -> None:
    home, hidden = tmp_path / "owner", tmp_path / "hidden"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").write_text("key")
    (home / ".netrc").write_text("password")
    hidden.mkdir()
    (hidden / "file").write_text("hidden")
    box = boxed(owner_home=home, hide=(hidden,))
    other = box.work_dir / "jobs" / "other.1"
    code = f"""
import os
def read(path):
    try:
        return open(path).read()
    except OSError:
        return ""
def names(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
open("mine", "w").write("written")
print([read({str(token_file)!r}), read({str(home / ".netrc")!r}), names({str(home / ".ssh")!r}),
       names({str(hidden)!r}), names({str(other)!r}), read("/proc/{os.getpid()}/environ"),
       names("/proc/{os.getpid()}/fd")])
"""
    sink = Captured()
    assert run(command(box, code), sink=sink) == 0
    assert (box.own / "mine").read_text() == "written"
    if box.kind is Kind.NONE:
        assert "key" not in sink.out.decode()
        assert token_file.read_text() in sink.out.decode().replace("\\n", "\n")
    else:
        assert sink.out == b"['', '', [], [], [], '', []]\n"


def test_nobody_lifts_the_lid(boxed: Boxed, token_file: Path) -> None:
    """In namespaces of its own a child is root again, and still not over what hides the token."""
    box = boxed()
    if box.kind is Kind.NONE:
        return
    tries = f"""
cat {token_file}
umount {token_file}; umount -l {token_file}; umount -l {box.work_dir}; umount -l /proc
cat {token_file}; cat /proc/1/root{token_file}; ls {box.work_dir}/jobs/other.1
unshare -Urmpf --mount-proc sh -c 'umount -l {token_file}; umount -l {box.work_dir};
    cat {token_file}; ls {box.work_dir}/jobs/other.1; mount -t proc proc /proc
    ls /proc/{os.getpid()}'
"""
    sink = Captured()
    run(command(box, "", argv=["sh", "-c", tries]), sink=sink)
    assert sink.out == b""
    assert sink.err


def test_in_a_box_a_polite_child_gets_its_grace_and_the_rest_is_gone(boxed: Boxed) -> None:
    box = boxed()
    code = STUBBORN.replace(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, lambda *_: (open('tidy', 'w').close(), os._exit(0)))",
    )
    mark = box.own / "child"
    with pytest.raises(Interrupted):
        run(
            command(box, code, grace_s=30.0),
            sink=Captured(),
            interrupt=lambda: (
                Interruption.CANCELLED
                if mark.exists() and (box.own / "grandchild").exists()
                else None
            ),
        )
    assert (box.own / "tidy").exists()
    assert of_directory(box.own) == []


def of_directory(directory: Path) -> list[int]:
    """Return the processes that work in a directory: in a box their own numbers tell nothing."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                here = (entry / "cwd").readlink()
            except OSError:
                continue
            if here == directory and not gone(int(entry.name)):
                found.append(int(entry.name))
    return found


DAEMON = """
import os, sys
from pathlib import Path
from remote_worker.box import Box, Kind
from remote_worker.output import Captured
from remote_worker.process import Command, run
kind, program, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
own = work / "jobs" / "this.1"
box = Box(kind=Kind(kind), program=program, hidden=(), work_dir=work, own=own)
argv = [sys.executable, "-I", "-S", "-c", sys.argv[4]]
run(Command(argv=argv, cwd=own, environment={"PATH": os.environ["PATH"]}, time_limit_s=60, box=box),
    sink=Captured())
"""


def test_with_the_daemon_killed_nothing_is_left_of_a_box(boxed: Boxed) -> None:
    box = boxed()
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", DAEMON, box.kind, box.program, str(box.work_dir), STUBBORN]
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        until(lambda: (box.own / "child").exists() and (box.own / "grandchild").exists(), 30.0)
        assert of_directory(box.own)
        process.kill()
        # 5 s is the promise; a machine that is busy with other tests is given more
        until(lambda: not of_directory(box.own), 15.0, "the tree is gone")
