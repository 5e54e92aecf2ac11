"""How soon an orchestrator has the result of a job whose worker said that it is done."""

from __future__ import annotations

import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

from celery import Celery

from tests.bench.beside import database_of, running_stack
from tests.bench.measures import cuts_ms
from tests.processes import until
from tests.stacks import Client


def measure(database: str, *, singles: int) -> list[dict[str, Any]]:
    """Take jobs one at a time through a whole stack, while somebody waits in ``get()``."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        stack = held.enter_context(running_stack(folder, database_of(held, database)))
        app = held.enter_context(stack.orchestrator())
        pool = held.enter_context(ThreadPoolExecutor(1))
        worker = stack.worker("settle")
        taken = [_one(app, worker, pool) for _ in range(singles)]
    said, answered = zip(*taken, strict=True)
    return [
        {"complete to get()": "from its call"} | cuts_ms(said),
        {"complete to get()": "from its answer"} | cuts_ms(answered),
    ]


def _one(app: Celery, worker: Client, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Return the seconds from the call and from its answer; an answer may come after the result."""
    sent = app.send_task("noop", queue="remote")

    def wait() -> float:
        sent.get(timeout=60)
        return time.perf_counter()

    got = pool.submit(wait)
    claim = {"workerId": "settle", "leaseSeconds": 60, "waitSeconds": 25}
    # a queue's first claim may come while its index is built, and is told to ask again
    job = until(lambda: _post(worker, "/jobs/claim", claim).get("job"), 60, "a claim has the job")
    mine = {"workerId": "settle", "leaseId": job["leaseId"]}
    said = time.perf_counter()
    assert _post(worker, f"/jobs/{job['id']}/complete", mine).get("id"), "a complete was refused"
    answered = time.perf_counter()
    moment = got.result(70)
    return moment - said, max(0.0, moment - answered)


def _post(worker: Client, path: str, body: dict[str, Any]) -> Any:
    answer = worker.post(path, body, **{"Idempotency-Key": str(uuid.uuid4())})
    assert answer.status_code in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}, answer.text
    return answer.json()
