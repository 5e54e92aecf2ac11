"""What an edge says can neither steer a person's terminal nor break the arithmetic of a lease."""

import io
import logging
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from remote_worker.board import Board, JobLine, Snapshot
from remote_worker.job import parse_beat, parse_welcome
from remote_worker.log import TextFormatter
from remote_worker.slots import State
from remote_worker.terminal import drawn

STEERING = "\x1b]0;mine\x07\x1b[2J"


def test_a_time_too_large_for_a_float_is_a_long_time() -> None:
    huge = 10**400
    assert (parse_beat({"expiresIn": huge}).expires_in_s or 0) > 86400
    assert (parse_welcome({"heartbeatSeconds": huge}).heartbeat_s or 0) > 86400


def test_a_trace_neither_steers_the_terminal_nor_looks_like_a_record() -> None:
    error = ValueError(f"{STEERING}\n12:00:00 info    forged")
    trace = (ValueError, error, None)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "said", None, trace)
    lines = TextFormatter().format(record).split("\n")
    assert "\x1b" not in "".join(lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert lines[-1].strip() == "12:00:00 info    forged"


def test_a_type_does_not_steer_the_live_view() -> None:
    job = JobLine(id="j", type=STEERING, running_s=0, said=STEERING, beat_s=None, refused=False)
    now = Snapshot(
        state="running", slots=1, jobs=(job,), endings={}, claims=0, heard_s=None, deaf_s=0,
        troubles=(),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as shown:
        console.print(drawn(now))
    assert "\x1b" not in shown.get()


def test_a_full_worker_hears_the_edge_by_its_heartbeats() -> None:
    lease = SimpleNamespace(renewed=95.0, said="", refused=False)
    run = SimpleNamespace(job=SimpleNamespace(id="j", type="t"), lease=lease, started=0.0)
    daemon: Any = SimpleNamespace(
        slots=SimpleNamespace(running=lambda: (run,), held=False, state=State.RUNNING, limit=1),
        claiming=SimpleNamespace(answered=40.0, claims=1, deaf=False, deaf_s=lambda: 0.0),
        terms=SimpleNamespace(interval_s=20.0),
        endings={},
    )
    assert Board(daemon, clock=lambda: 100.0).look().heard_s == 5.0
    lease.renewed = None
    assert Board(daemon, clock=lambda: 100.0).look().heard_s == 60.0
