"""How fast messages get from the Celery broker into the ledger, beside a native worker's pace."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import redis
import sqlalchemy as sa
from celery import Celery

from broker.ledger.engine import Ledger
from broker.ledger.jobs import jobs as rows
from tests.bench.beside import PREFORK, database_of, native_worker, running_stack
from tests.processes import until


def measure(database: str, *, jobs: int) -> list[dict[str, Any]]:
    """Put messages into each queue all at once, and time until the last was taken care of."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        stack = held.enter_context(running_stack(folder, database_of(held, database)))
        held.enter_context(native_worker(stack, folder))
        app = held.enter_context(stack.orchestrator())
        broker = held.enter_context(closing(redis.Redis.from_url(stack.told["brokerUrl"])))
        results = held.enter_context(closing(redis.Redis.from_url(stack.told["resultBackend"])))
        ledger = held.enter_context(closing(Ledger(stack.told["databaseUrl"])))
        done = {
            "native": lambda ids: _results(results, ids),
            "remote": lambda _: _rows(ledger),
        }
        names = {"native": "native.noop", "remote": "noop"}
        paces = {side: _pace(app, broker, side, names[side], jobs, done[side]) for side in names}
    return [
        {"side": f"native, prefork -c {PREFORK}: run, with result", "messages/s": paces["native"]},
        {"side": "bridge: into the ledger", "messages/s": paces["remote"]},
    ]


def _pace(
    app: Celery,
    broker: redis.Redis,
    queue: str,
    name: str,
    count: int,
    done: Callable[[list[str]], int],
) -> float:
    app.send_task(name, queue="parked")
    model = json.loads(cast(bytes, broker.lpop("parked")))
    model["properties"]["delivery_info"]["routing_key"] = queue
    ids = [str(uuid.uuid4()) for _ in range(count)]
    messages = [json.dumps(_copy(model, task_id)) for task_id in ids]
    before = done(ids)
    began = time.perf_counter()
    broker.lpush(queue, *messages)
    until(lambda: done(ids) - before >= count, 300, what=f"{count} messages of {queue} are done")
    return count / (time.perf_counter() - began)


def _copy(model: dict[str, Any], task_id: str) -> dict[str, Any]:
    """Make another message of one, as if it had been sent by itself."""
    headers = model["headers"] | {"id": task_id, "root_id": task_id}
    properties = model["properties"] | {
        "correlation_id": task_id, "delivery_tag": str(uuid.uuid4()),
    }  # fmt: skip
    return model | {"headers": headers, "properties": properties}


def _results(results: redis.Redis, ids: list[str]) -> int:
    return cast(int, results.exists(*(f"celery-task-meta-{task_id}" for task_id in ids)))


def _rows(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return int(conn.scalar(sa.select(sa.func.count()).select_from(rows)) or 0)
