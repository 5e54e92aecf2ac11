"""The stack's processes: started in order, restarted when they die, stopped in reverse."""

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from broker.stack import processes
from broker.stack.processes import (
    KeepsDying,
    Program,
    StartFailed,
    Stopped,
    Supervisor,
    end_leftovers,
)
from tests.processes import until

RUNS = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
    "[signal.pause() for _ in iter(int, 1)]"
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def supervisor(tmp_path: Path, clock: Clock, stopping: threading.Event) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "processes.json", stopping=stopping, clock=clock)
    yield made
    made.stop()


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    def make(
        name: str, code: str = RUNS, *, grace_s: float = 5.0, never_ready: bool = False
    ) -> Program:
        log = tmp_path / f"{name}.log"
        return Program(
            name=name,
            argv=(sys.executable, "-I", "-c", code),
            environment={"GIVEN": name},
            folder=tmp_path,
            log=log,
            ready=lambda: not never_ready and log.exists() and "up" in log.read_text(),
            grace_s=grace_s,
        )

    return make


def test_start_waits_until_ready_and_stop_ends_the_last_first(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
):
    says = "import signal, sys; signal.signal(15, lambda *_: (open('order', 'a').write('{0} '), "
    says += "sys.exit())); print('up', flush=True); signal.pause()"
    supervisor.start(program("first", says.format("first")))
    supervisor.start(program("second", says.format("second")))
    assert list(supervisor.pids) == ["first", "second"]
    supervisor.stop()
    assert (tmp_path / "order").read_text() == "second first "
    supervisor.stop()


def test_the_record_of_who_runs_is_replaced_whole(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
):
    """Whoever is reading while a child comes or goes reads the record of before, entire."""
    supervisor.start(program("one"))
    with (tmp_path / "processes.json").open() as reader:
        supervisor.start(program("two"))
        assert [entry["name"] for entry in json.load(reader)] == ["one"]
    names = [entry["name"] for entry in json.loads((tmp_path / "processes.json").read_text())]
    assert names == ["one", "two"]
    assert not list(tmp_path.glob("*.draft"))


def test_a_child_has_the_environment_it_was_given_and_no_other(
    supervisor: Supervisor, program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "ours")
    supervisor.start(program("one"))
    assert psutil.Process(supervisor.pids["one"]).environ() == {"GIVEN": "one"}


def test_a_program_that_ends_instead_of_coming_up_is_told_with_its_log(
    supervisor: Supervisor, program: Callable[..., Program]
):
    with pytest.raises(StartFailed, match=r"(?s)worker ended with exit code 7.*no codex here"):
        supervisor.start(program("worker", "print('no codex here'); raise SystemExit(7)"))


def test_a_program_that_never_gets_ready_is_told(
    supervisor: Supervisor,
    program: Callable[..., Program],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(processes, "READY_S", -1.0)
    with pytest.raises(StartFailed, match="was not ready in time"):
        supervisor.start(program("edge", never_ready=True))


def test_a_stop_during_the_start_is_heard(
    supervisor: Supervisor, program: Callable[..., Program], stopping: threading.Event
):
    timer = threading.Timer(0.1, stopping.set)
    timer.start()
    with pytest.raises(Stopped):
        supervisor.start(program("edge", never_ready=True))
    timer.join()


def test_a_dead_child_is_restarted_after_its_backoff(
    supervisor: Supervisor, program: Callable[..., Program], clock: Clock
):
    supervisor.start(program("edge"))
    first = supervisor.pids["edge"]
    kill(first)
    supervisor.check()
    supervisor.check()
    assert supervisor.pids["edge"] == first, "the backoff is not over"
    clock.now += processes.BACKOFF_S
    supervisor.check()
    assert supervisor.pids["edge"] != first
    assert psutil.pid_exists(supervisor.pids["edge"])


def test_a_child_that_keeps_dying_is_given_up(
    supervisor: Supervisor, program: Callable[..., Program], clock: Clock
):
    supervisor.start(program("edge"))
    for _ in range(processes.DEATHS):
        kill(supervisor.pids["edge"], signal.SIGABRT)
        supervisor.check()
        clock.now += processes.BACKOFF_MAX_S
        supervisor.check()
    kill(supervisor.pids["edge"], signal.SIGABRT)
    with pytest.raises(KeepsDying, match="edge ended with exit code -6"):
        supervisor.check()


def test_a_child_that_others_keep_killing_is_not_given_up(
    supervisor: Supervisor, program: Callable[..., Program], clock: Clock
):
    supervisor.start(program("edge"))
    for _ in range(processes.DEATHS + 2):
        kill(supervisor.pids["edge"])
        supervisor.check()
        clock.now += processes.BACKOFF_MAX_S
        supervisor.check()
    assert psutil.pid_exists(supervisor.pids["edge"])


def test_deaths_far_apart_are_forgiven(
    supervisor: Supervisor, program: Callable[..., Program], clock: Clock
):
    supervisor.start(program("edge"))
    for _ in range(processes.DEATHS + 2):
        kill(supervisor.pids["edge"])
        supervisor.check()
        clock.now += processes.WINDOW_S
        supervisor.check()
    assert psutil.pid_exists(supervisor.pids["edge"])


def test_a_stubborn_child_is_killed_with_what_it_started(
    supervisor: Supervisor, program: Callable[..., Program]
):
    code = "import subprocess, sys\n"
    code += f"subprocess.Popen([sys.executable, '-I', '-c', {STUBBORN!r}], start_new_session=True)"
    supervisor.start(program("worker", f"{code}\n{STUBBORN.replace('; ', chr(10))}", grace_s=0.2))
    mother = psutil.Process(supervisor.pids["worker"])
    (child,) = until(mother.children, what="it has a child")
    supervisor.stop()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="gone")
    assert not psutil.pid_exists(mother.pid)


def test_who_takes_the_first_signal_for_patience_is_told_again(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
):
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15])\n"
    code += "print('up', flush=True); signal.sigwait([15]); signal.sigwait([15])\n"
    code += "open('told', 'w').write('twice')"
    supervisor.start(dataclasses.replace(program("worker", code), insist_s=0.3))
    supervisor.stop()
    assert (tmp_path / "told").read_text() == "twice"


def test_what_a_killed_stack_left_running_is_ended_by_the_next(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
):
    supervisor.start(program("edge"))
    record = tmp_path / "copy.json"
    record.write_text((tmp_path / "processes.json").read_text())
    left = psutil.Process(supervisor.pids["edge"])
    assert end_leftovers(record) == ["edge"]
    assert not record.exists()
    assert not left.is_running()
    assert end_leftovers(record) == []


def test_a_stranger_with_the_pid_of_a_leftover_is_left_alone(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
):
    supervisor.start(program("edge"))
    record = tmp_path / "copy.json"
    pid = supervisor.pids["edge"]
    record.write_text(f'[{{"name": "edge", "pid": {pid}, "started": 1.5}}]')
    assert end_leftovers(record) == []
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kill a child and wait until it is dead; its parent reaps it."""
    process = psutil.Process(pid)
    process.send_signal(number)
    until(lambda: process.status() == psutil.STATUS_ZOMBIE, what=f"{pid} is dead")
