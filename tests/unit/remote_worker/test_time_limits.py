"""A task's own time limits at the worker: soft before hard, the smaller of all wins."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker.client import Client
from remote_worker.clock import Clock, steady
from remote_worker.errors import Interrupted, Interruption
from remote_worker.handlers import HANDLERS
from remote_worker.handlers.context import Context, Handler, Outcome
from remote_worker.job import parse_job
from remote_worker.lease import Terms
from remote_worker.limits import TIMED_OUT, TimeLimits
from remote_worker.process import GRACE_S
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Spool
from tests.unit.remote_worker.conftest import Run
from tests.unit.remote_worker.edge import TOKEN, FakeEdge, Held

SOFT, HARD = (TIMED_OUT[one] for one in (Interruption.SOFT_TIME_LIMIT, Interruption.TIME_LIMIT))
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True: time.sleep(1)
"""
TASK = {"argv": SLEEP}
Do = Callable[..., Held]


@pytest.fixture
def do(client: Client, edge: FakeEdge, make_settings: Callable[..., Settings]) -> Do:
    """Run one job of the type, with the limits of its task."""

    def call(
        job_type: str, payload: dict[str, object], limits: dict[str, object],
        handlers: dict[str, Handler] | None = None, clock: Clock = steady,
    ) -> Held:  # fmt: skip
        settings = make_settings(allow_program=(sys.executable,))
        settings.work_dir.mkdir(exist_ok=True)
        spool = Spool(settings.work_dir)
        spool.open()
        held = edge.offer(job_type, **payload)
        job_run = JobRun(
            parse_job(held.job | limits), client=client, settings=settings, spool=spool,
            handlers=handlers or HANDLERS, redactor=Redactor([TOKEN]), stopping=lambda: False,
            terms=Terms(lease_s=60, interval_s=0.1, clock=clock), on_drain=lambda: None,
        )  # fmt: skip
        assert job_run.run()
        spool.close()
        return held

    return call


@pytest.mark.parametrize(
    "payload,limits,error_type",
    [
        (TASK, {"softTimeLimitSeconds": 1}, SOFT),
        (TASK, {"timeLimitSeconds": 1.5}, HARD),
        (TASK, {"softTimeLimitSeconds": 1, "timeLimitSeconds": 60}, SOFT),
        (TASK, {"softTimeLimitSeconds": 60, "timeLimitSeconds": 1}, HARD),
        (TASK | {"timeLimitSeconds": 1}, {"timeLimitSeconds": 60}, "time_limit_exceeded"),
        (TASK | {"timeLimitSeconds": 60}, {"softTimeLimitSeconds": 1}, SOFT),
    ],
    ids=["soft", "hard", "soft first", "hard first", "its own", "larger of its own"],
)
def test_a_command_ends_with_its_log(
    do: Do, payload: dict[str, object], limits: dict[str, object], error_type: str
) -> None:
    held = do("command", payload, limits)
    assert (held.ended, held.report["errorType"]) == ("fail", error_type)
    assert held.report["retryable"] is False
    assert "logs/command.log" in held.artifacts


def at_sign(sign: Path, jump_s: float) -> Clock:
    """Return a clock that jumps when a child has come so far."""
    return lambda: steady() + (jump_s if sign.exists() else 0.0)


def test_what_does_not_end_between_the_limits_has_exceeded_the_hard_one(
    do: Do, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    argv = [sys.executable, "-c", STUBBORN, str(sign)]
    limits: dict[str, object] = {"softTimeLimitSeconds": 30, "timeLimitSeconds": 30.5}
    held = do("command", {"argv": argv}, limits, clock=at_sign(sign, 30))
    assert (held.ended, held.report["errorType"]) == ("fail", HARD)


def test_an_agent_over_its_soft_limit_leaves_what_it_had_done(run: Run, seen: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "here = pathlib.Path(sys.argv[sys.argv.index('--cd') + 1])\n"
        "(here / 'a.txt').write_text('half\\n')\n"
        "print('slow', flush=True)\n"
        "pathlib.Path(%(seen)r).touch()\n"
        "time.sleep(60)"
    )
    limits: dict[str, object] = {"softTimeLimitSeconds": 30, "timeLimitSeconds": 1000}
    held = run(code, limits=limits, clock=at_sign(seen, 30))
    assert held.report["errorType"] == SOFT
    assert "+half" in held.artifacts["patches/changes.patch"]["text"]
    assert "slow" in held.artifacts["logs/codex_exec.log"]["text"]


@pytest.mark.parametrize("name,error_type", [("softTimeLimit", SOFT), ("timeLimit", HARD)])
def test_a_handler_that_asks_is_stopped_between_its_steps(
    do: Do, name: str, error_type: str
) -> None:
    def endless(context: Context) -> Outcome:
        while True:
            context.go_on()

    held = do("endless", {}, {f"{name}Seconds": 0.2}, {"endless": endless})
    assert (held.ended, held.report["errorType"]) == ("fail", error_type)


def test_the_soft_limit_is_said_once_and_there_is_time_until_the_hard_one() -> None:
    now = 100.0
    limits = TimeLimits(hard_s=7, soft_s=4, clock=lambda: now)
    assert limits.due() is None
    now = 104.0
    assert [limits.due(), limits.due()] == [Interruption.SOFT_TIME_LIMIT, None]
    now = 107.0
    assert [limits.due(), limits.due()] == [Interruption.TIME_LIMIT] * 2
    assert limits.grace_s(GRACE_S) == 3
    for hard_s, soft_s in ((None, 4), (7, None), (100, 4), (4, 7)):
        other = TimeLimits(hard_s=hard_s, soft_s=soft_s, clock=lambda: now)
        assert other.grace_s(GRACE_S) == GRACE_S


def test_a_lease_that_is_lost_in_between_is_not_reported_as_a_limit(do: Do) -> None:
    def lost(context: Context) -> Outcome:
        context.lease.end()
        with pytest.raises(Interrupted) as stopped:
            context.go_on()
        assert stopped.value.why is Interruption.LEASE_LOST
        raise stopped.value

    held = do("lost", {}, {"timeLimitSeconds": 0.01}, {"lost": lost})
    assert held.ended is None


@pytest.mark.parametrize("bad", [0, -1, "5", [], True])
def test_limits_that_are_none_fail_the_job_and_not_the_worker(do: Do, bad: object) -> None:
    held = do("command", TASK, {"timeLimitSeconds": bad})
    assert (held.ended, held.report["errorType"]) == ("fail", "bad_job")
