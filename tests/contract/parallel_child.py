"""A process of its own that does one thing in several threads at once; see test_parallel."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any
from uuid import uuid4

from broker import errors
from broker.clock import Clock
from broker.ledger.engine import Ledger
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, Job, NewEvent, NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Status
from broker.upkeep import Upkeep

REFUSALS = (errors.JobStateConflict, errors.OwnershipMismatch)


def open_queue(database_url: str, redis_url: str) -> JobQueue:
    """Open the queue as an edge or a bridge does, but for the sync of SQLite's file."""
    reservations = Reservations.connect(redis_url)
    return JobQueue(
        Ledger(database_url, synchronous="NORMAL"),
        reservations,
        clock=Clock(reservations.clock_ms),
        settings=QueueSettings(),
    )


def patiently(call: Callable[[], Any]) -> Any:
    """Ask again while a store says so, as every client does."""
    while True:
        try:
            return call()
        except errors.Unavailable:
            threading.Event().wait(0.02)


def claim(queue: JobQueue, worker: str, **values: Any) -> list[Job]:
    """Claim as a worker whose token restricts nothing else."""
    request = {"worker_id": worker, "policy": Policy(), "lease_seconds": 60} | values
    granted: list[Job] = patiently(lambda: queue.claim(ClaimRequest(**request)))
    return granted


def same_key(queue: JobQueue, me: str, _: Any) -> Any:
    """Claim under one key for all."""
    return [
        [job.id, job.lease_id, job.fence, str(job.status)]
        for job in claim(queue, "w", claim_key="key", max_jobs=2)
    ]


def one_each(queue: JobQueue, me: str, _: Any) -> Any:
    """Claim once."""
    return [job.id for job in claim(queue, me)]


def limited(queue: JobQueue, me: str, most: Any) -> Any:
    """Claim more than the worker may hold."""
    return [job.id for job in claim(queue, "w", policy=Policy(max_concurrency=most), max_jobs=2)]


def work_all(queue: JobQueue, me: str, _: Any) -> Any:
    """Claim and complete until nothing is queued."""
    done = []
    while patiently(lambda: queue.catalog.page(status=Status.QUEUED, limit=1)[0]):
        for job in claim(queue, me, max_jobs=3):
            holder = Holder(worker_id=me, lease_id=job.lease_id)
            with suppress(*REFUSALS):
                patiently(lambda job=job, holder=holder: queue.complete(job.id, holder, result=me))
                done.append([job.id, job.fence])
    return done


def meddle(queue: JobQueue, me: str, task_ids: Any) -> Any:
    """Do what locks many rows at once: sweeps, cancels, conflicts, rebuilds."""
    upkeep = Upkeep(queue)
    # each thread in an order of its own
    ids = Random(me).sample(task_ids, len(task_ids))
    for at in range(0, len(ids), 10):
        part = ids[at : at + 10]
        again = [NewJob(task_id=one, queue="remote", type="x", retries=9) for one in part]
        patiently(lambda again=again: queue.ingest(again))
        if at % 50 == 0:
            with suppress(errors.JobStateConflict):
                patiently(lambda part=part: queue.cancel(part[0]))
        if at % 40 == 0:
            queue.reservations.client.flushall()
        patiently(upkeep.expire)
        patiently(upkeep.reconcile)
    return []


def write_events(queue: JobQueue, me: str, what: Any) -> Any:
    """Append to one log, in batches, some twice."""
    job_id, lease_id, number = what
    holder = Holder(worker_id="w", lease_id=lease_id)
    base = int(me.rpartition("-")[2]) * 1000 + int(me[1]) * 100_000
    for batch in range(number):
        first = base + batch * 3
        new = [NewEvent(message=f"{n}", worker_seq=n) for n in range(first, first + 3)]
        for _ in range(1 + batch % 2):
            patiently(lambda new=new: queue.append_events(job_id, holder, new))
    return list(range(base, base + 3 * number))


def end(queue: JobQueue, me: str, what: Any) -> Any:
    """End one lease in whatever way, all at once."""
    job_id, lease_id, same = what
    holder = Holder(worker_id="w", lease_id=lease_id)
    number = int(me.rpartition("-")[2]) + 16 * int(me[1])
    calls: list[Callable[[], Job]] = [
        lambda: queue.complete(job_id, holder, result="same" if same else me),
        lambda: queue.fail(job_id, holder, error_message=me, retryable=True),
        lambda: queue.release(job_id, holder),
        lambda: queue.fail(job_id, holder, error_message=me),
    ]
    try:
        return str(patiently(calls[0 if same else number % 4]).status)
    except REFUSALS:
        return "refused"


def create(queue: JobQueue, me: str, number: Any) -> Any:
    """Create jobs of one's own, and the same one as everybody."""
    made = []
    for at in range(number):
        common = {"queue": "remote", "type": "echo", "created_by": "op"}
        new = NewJob(task_id=str(uuid4()), payload={"at": at}, **common)
        made.append(patiently(lambda new=new: queue.create(new)).id)
        same = NewJob(task_id=str(uuid4()), idempotency_key=f"k{at}", **common)
        made.append(patiently(lambda same=same: queue.create(same)).id)
    return made


ACTIONS = {
    action.__name__: action
    for action in (
        same_key, one_each, limited, work_all, meddle, write_events, end, create,
    )
}  # fmt: skip


def run(order: dict[str, Any]) -> list[Any]:
    """Do what was ordered in threads that start at once; answers what each returned."""
    queue = open_queue(order["database"], order["redis"])
    gate = threading.Barrier(order["threads"])

    def one(number: int) -> Any:
        gate.wait(30)
        return ACTIONS[order["action"]](queue, f"{order['me']}-{number}", order["what"])

    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with ThreadPoolExecutor(order["threads"]) as pool:
            return list(pool.map(one, range(order["threads"])))
    finally:
        queue.reservations.close()
        queue.ledger.close()


def main() -> None:
    """Take orders, a line each, until there are none."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
