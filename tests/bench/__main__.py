"""`make bench`: no-op jobs through the edge beside a native Celery worker, in one run, as ratios.

Both sides share one broker, one result backend, one orchestrator and one machine. Throughput is
first send to last result; latency is send to start, one job at a time.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import psutil
from celery import Celery
from celery.result import AsyncResult

from tests.processes import Process, until
from tests.stacks import Stack, start_up

ROOT: Final = Path(__file__).resolve().parents[2]
LOOPS: Final = 8
PREFORK: Final = 2


@click.command()
@click.option("--jobs", default=1000, show_default=True, help="Jobs of the throughput run.")
@click.option("--singles", default=200, show_default=True, help="Jobs of the latency run.")
@click.option("--database-url", help="A ledger instead of SQLite in FULL durability.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one line of JSON.")
def main(jobs: int, singles: int, database_url: str | None, *, as_json: bool) -> None:
    """Measure and print."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        stack = held.enter_context(_stack(folder, database_url))
        held.enter_context(_native_worker(stack, folder))
        loops = held.enter_context(_remote_loops(stack, folder))
        app = held.enter_context(stack.orchestrator())
        sides = {"native": ("native.noop", "native"), "remote": ("noop", "remote")}
        for name, queue in sides.values():
            _throughput(app, name, queue, 50)
        figures: dict[str, Any] = {"jobs": jobs, "singles": singles, "machine": _machine()}
        for side, (name, queue) in sides.items():
            before = _cpu_s(stack, loops.pid)
            figures[side] = {"per_s": _throughput(app, name, queue, jobs)}
            spent = {role: used - before[role] for role, used in _cpu_s(stack, loops.pid).items()}
            figures[side] |= _latency(app, name, queue, singles)
        # the last side is ours
        figures["cpu"] = {role: used / jobs * 1000 for role, used in spent.items()}
        figures["where"] = _where(app, stack, singles)
    figures["ratio"] = {
        key: round(figures["remote"][key] / figures["native"][key], 2) for key in figures["native"]
    }
    click.echo(json.dumps(figures) if as_json else _table(figures))


@contextmanager
def _stack(folder: Path, database_url: str | None) -> Iterator[Stack]:
    started: list[Process] = []

    def process(argv: Any, **more: Any) -> Process:
        started.append(Process(argv, log=folder / "up.log", **more))
        return started[-1]

    options = ("--database-url", database_url) if database_url else ()
    try:
        yield start_up(process, folder / "data", "--no-flower", *options)
    finally:
        for one in started:
            one.terminate(timeout=60)
            one.close()


@contextmanager
def _native_worker(stack: Stack, folder: Path) -> Iterator[None]:
    told = stack.told
    env = {"APP_BROKER": told["brokerUrl"], "APP_BACKEND": told["resultBackend"]}
    argv = [sys.executable, "-m", "celery", "-A", "tests.bench.native_app", "worker"]
    argv += ["-Q", "native", "-P", "prefork", "-c", str(PREFORK), "-n", "native@here", "-E"]
    worker = Process(argv, log=folder / "native.log", env={**os.environ, **env}, cwd=ROOT)
    try:
        with stack.orchestrator() as app:
            until(
                lambda: any("native@here" in reply for reply in app.control.ping(timeout=1)),
                60,
                what="the native worker answers",
            )
        yield
    finally:
        worker.terminate(timeout=30)
        worker.close()


@contextmanager
def _remote_loops(stack: Stack, folder: Path) -> Iterator[subprocess.Popen[str]]:
    tokens = []
    for number in range(LOOPS):
        body = {"workerId": f"loop-{number}"}
        tokens.append(body | stack.operator.post("/workers/tokens", body).json())
    with (folder / "loops.log").open("wb") as log:
        loops = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.loops", stack.told["edgeUrl"]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True,
        )  # fmt: skip
    assert loops.stdin is not None
    assert loops.stdout is not None
    try:
        loops.stdin.writelines(json.dumps(token) + "\n" for token in tokens)
        loops.stdin.close()
        assert loops.stdout.readline() == "ready\n"
        yield loops
    finally:
        loops.kill()
        loops.wait()


def _cpu_s(stack: Stack, loops: int) -> dict[str, float]:
    """Return the seconds of CPU each process of ours has used so far."""
    pids = {role: stack.pid(role) for role in stack.told["pids"]}
    pids |= {"worker loops": loops, "orchestrator": os.getpid()}
    used = {}
    for role, pid in pids.items():
        own = psutil.Process(pid)
        family = [own] if role == "orchestrator" else [own, *own.children(recursive=True)]
        times = [one.cpu_times() for one in family]
        used[role] = sum(time.user + time.system for time in times)
    return used


def _throughput(app: Celery, name: str, queue: str, jobs: int) -> float:
    """Return jobs per second from the first send to the last result."""
    began = time.perf_counter()
    sent = [app.send_task(name, queue=queue) for _ in range(jobs)]
    for one in sent:
        one.get(timeout=300)
    return jobs / (time.perf_counter() - began)


def _latency(app: Celery, name: str, queue: str, singles: int) -> dict[str, float]:
    """Return p50 and p99 of send to start, in milliseconds, one job at a time."""
    taken = []
    for _ in range(singles):
        sent_at = time.time()
        taken.append(app.send_task(name, queue=queue).get(timeout=60)["started"] - sent_at)
    cuts = statistics.quantiles(taken, n=100)
    return {"start_p50_ms": cuts[49] * 1000, "start_p99_ms": cuts[98] * 1000}


def _where(app: Celery, stack: Stack, singles: int) -> dict[str, float]:
    """Return the median milliseconds of each step of a job, one job at a time."""
    steps: dict[str, list[float]] = {}
    for _ in range(singles):
        sent_at = time.time()
        sent: AsyncResult = app.send_task("noop", queue="remote")
        result = sent.get(timeout=60)
        got_at = time.time()
        job = stack.operator.get(f"/jobs/{sent.id}")
        moments = [
            sent_at, _epoch(job["createdAt"]), _epoch(job["startedAt"]), result["claimed"],
            result["started"], _epoch(job["finishedAt"]), got_at,
        ]  # fmt: skip
        names = (
            "send to ingest begins", "ingest to grant begins", "grant to worker has it",
            "first heartbeat", "complete begins in the ledger", "complete to AsyncResult.get()",
        )  # fmt: skip
        for step, begin, end in zip(names, moments[:-1], moments[1:], strict=True):
            steps.setdefault(step, []).append((end - begin) * 1000)
    return {step: statistics.median(taken) for step, taken in steps.items()}


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def _table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['machine']}; {figures['jobs']} jobs at once, {figures['singles']} one by one;",
        f"{LOOPS} worker loops through the edge beside prefork -c {PREFORK}",
        "",
        f"{'':34}{'native':>10}{'remote':>10}{'ratio':>8}",
    ]
    for key, label in (
        ("per_s", "enqueue to result, jobs/s"),
        ("start_p50_ms", "start latency p50, ms"),
        ("start_p99_ms", "start latency p99, ms"),
    ):
        native, remote = figures["native"][key], figures["remote"][key]
        lines.append(f"{label:34}{native:>10.1f}{remote:>10.1f}{figures['ratio'][key]:>8.2f}")
    lines += ["", "where the time of one job goes, median ms"]
    lines += [f"  {step:32}{taken:>10.2f}" for step, taken in figures["where"].items()]
    lines += ["", "CPU of one job of the throughput run, ms"]
    lines += [f"  {role:32}{spent:>10.2f}" for role, spent in figures["cpu"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
