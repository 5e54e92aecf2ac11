"""No-op jobs through the edge beside a native Celery worker, in one run, as ratios.

Both sides share one broker, one result backend, one orchestrator and one machine. Throughput is
first send to last result; latency is send to start, one job at a time.
"""

import json
import os
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

from celery import Celery
from celery.result import AsyncResult

from tests.bench.measures import cpu_s, spent_ms
from tests.processes import Process, until
from tests.services import Postgres
from tests.stacks import Stack, start_up

ROOT: Final = Path(__file__).resolve().parents[2]
LOOPS: Final = 8
PREFORK: Final = 2


def measure(database: str, *, jobs: int, singles: int) -> dict[str, Any]:
    """Measure both sides in one run."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        stack = held.enter_context(running_stack(folder, database_of(held, database)))
        held.enter_context(native_worker(stack, folder))
        loops = held.enter_context(_remote_loops(stack, folder))
        app = held.enter_context(stack.orchestrator())
        sides = {"native": ("native.noop", "native"), "remote": ("noop", "remote")}
        for name, queue in sides.values():
            _throughput(app, name, queue, 50)
        figures: dict[str, Any] = {"jobs": jobs, "singles": singles}
        pids = {role: stack.pid(role) for role in stack.told["pids"]}
        pids |= {"worker loops": loops.pid}
        for side, (name, queue) in sides.items():
            before, own = cpu_s(pids), time.process_time()
            figures[side] = {"per_s": _throughput(app, name, queue, jobs)}
            spent = spent_ms(before, cpu_s(pids), jobs)
            spent["orchestrator"] = (time.process_time() - own) / jobs * 1000
            figures[side] |= _latency(app, name, queue, singles)
        # the last side is ours
        figures["cpu"] = spent
        figures["where"] = _where(app, stack, singles)
    figures["ratio"] = {
        key: round(figures["remote"][key] / figures["native"][key], 2) for key in figures["native"]
    }
    return figures


def database_of(held: ExitStack, database: str) -> str | None:
    """Return the URL that ``drawbridge up`` is told; None for SQLite in its own folder."""
    if database != "postgres":
        return None if database == "sqlite" else database
    server = Postgres(fsync=True).start()
    held.callback(server.remove)
    return server.create_database()


@contextmanager
def running_stack(folder: Path, database_url: str | None) -> Iterator[Stack]:
    """Run a whole stack without a worker."""
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
def native_worker(stack: Stack, folder: Path) -> Iterator[None]:
    """Run an ordinary Celery worker on the same broker and result backend."""
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


def shown(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines of text."""
    lines = [
        f"{figures['jobs']} jobs at once, {figures['singles']} one by one;",
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
    return lines
