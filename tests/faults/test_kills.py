"""Real processes die by SIGKILL; no job is lost and none has two results."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from celery.result import AsyncResult

from tests.processes import Process, until
from tests.stacks import Client, Loop, retried, start_up, wait_for_status

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(420)]
JOBS: Final = 200
LOOPS: Final = 8
KILLS: Final = 12


class Log:
    """What the worker loops promised and were promised."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.completed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.stopping = threading.Event()

    def work(self, client: Client, job: Any) -> None:
        """Complete a job with its own number squared, until the edge has said yes or no."""
        mine = {"workerId": job["claimedBy"], "leaseId": job["leaseId"]}
        beat = retried(
            lambda: client.post(f"/jobs/{job['id']}/heartbeat", mine | {"leaseSeconds": 15}),
            self.stopping,
        )
        number = job["payload"]["number"]
        done = mine | {"result": {"square": number * number}}
        if beat is None or beat.status_code != 200:
            with self.lock:
                self.refused[job["id"]] += 1
            return
        answer = retried(lambda: client.post(f"/jobs/{job['id']}/complete", done), self.stopping)
        with self.lock:
            if answer is not None and answer.status_code == 200:
                self.completed[job["id"]] += 1
            else:
                self.refused[job["id"]] += 1


def test_200_jobs_while_bridge_edge_and_beat_are_killed(
    process: Callable[..., Process], tmp_path: Path
):
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed)
    stack = start_up(process, tmp_path / "data", "--no-flower")
    log = Log()
    loops = [Loop(stack.worker(f"loop-{n}"), f"loop-{n}", log.work).start() for n in range(LOOPS)]
    killed: Counter[str] = Counter()
    with stack.orchestrator() as app:
        sent: list[AsyncResult] = []
        for number in range(JOBS):
            sent.append(app.send_task("square", kwargs={"number": number}, queue="remote"))
            if number % (JOBS // KILLS) == 0:
                role = dice.choice(["bridge", "edge", "beat", "bridge", "edge"])
                stack.kill(role)
                killed[role] += 1
                # the run goes on into the outage: some of it, then wait for the role to be back
                until(lambda n=number: len(log.completed) >= n // 2, 120, what="half is done")
        results = [one.get(timeout=180) for one in sent]
    for loop in loops:
        loop.stop()
    assert results == [{"square": number * number} for number in range(JOBS)]
    assert sum(killed.values()) >= KILLS
    # nobody was told "done" twice for one job, and the ledger ended each exactly once
    assert set(log.completed) == {one.id for one in sent}
    assert set(log.completed.values()) == {1}
    for one in sent:
        ends = [
            event["message"]
            for event in stack.operator.get(f"/jobs/{one.id}/events")["items"]
            if event["message"] == "Job completed"
        ]
        assert ends == ["Job completed"]
    print(f"killed {dict(killed)}, refused {sum(log.refused.values())}")
    assert stack.process.terminate(timeout=60) == 0


@pytest.mark.postgres
def test_a_worker_killed_in_mid_job_is_replaced_by_another(
    process: Callable[..., Process], tmp_path: Path, postgres_url: str
):
    """The lease ends, the job is offered again and completes as its second attempt."""
    root = Path(__file__).resolve().parents[2]
    standin = root / "deploy" / "demo" / "standin_codex.py"
    from deploy.demo import repository  # noqa: PLC0415

    repo = tmp_path / "repository"
    repository.create(repo)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    started = tmp_path / "started"
    codex = tmp_path / "codex"
    # the child waits at a gate that only the test opens, so that the kill falls into mid-job
    codex.write_text(
        f'#!/bin/sh\n[ "$1" = exec ] && touch {started} && read _ < {gate}\nexec {standin} "$@"\n'
    )
    codex.chmod(0o755)
    stack = start_up(
        process, tmp_path / "data", "--no-flower", "--database-url", postgres_url,
        "--", "--codex", str(codex), "--lease-seconds", "3",
        "--allow-repository", f"file://{repo}", workers=2,
    )  # fmt: skip
    with stack.orchestrator() as app:
        payload = {"repository": f"file://{repo}", "instruction": "x"}
        sent = app.send_task("codex_exec", kwargs=payload, queue="remote")
        # before its first heartbeat a lost grant would cost no attempt: wait for the child
        until(started.exists, 60, what="the child runs")
        first = wait_for_status(stack.operator, sent.id, "running")
        stack.kill(first["claimedBy"])
        again = until(
            lambda: next_holder(stack.operator, sent.id, first["fence"]), 90, what="offered again"
        )
        assert again["attempt"] == 2
        gate.write_text("go\n")
        assert sent.get(timeout=60)["changedFiles"]
    log = [e["message"] for e in stack.operator.get(f"/jobs/{sent.id}/events")["items"]]
    assert log.count("Job claimed") == 2
    # who is first: the end of the lease, or the worker that runs again and reports what it left
    assert log.count("Lease expired") + log.count("Job failed (retryable)") == 1
    ledger = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    with ledger.connect() as conn:
        told = conn.execute(sa.text("SELECT attempt, outcome FROM attempts ORDER BY fence")).all()
    assert [one.attempt for one in told] == [1, 2]
    assert told[0].outcome in {"lost", "failed"}
    assert told[1].outcome == "succeeded"
    assert stack.process.terminate(timeout=60) == 0


def next_holder(operator: Client, job_id: str, fence: int) -> Any:
    job = operator.get(f"/jobs/{job_id}")
    return job if job["status"] == "running" and job["fence"] > fence else None
