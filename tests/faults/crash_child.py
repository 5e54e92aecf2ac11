"""A process that forks others, and has each kill itself at a named point of what it does.

The product has no hooks for it: the named step is replaced by one that kills.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from broker.clock import Clock
from broker.ledger import at_once
from broker.ledger.engine import Ledger
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, NewEvent, NewJob, Rejection
from broker.reservations import generations
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.upkeep import Upkeep


def die() -> NoReturn:
    """End as the kernel ends a process: at once, with nothing put in order."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(point: str) -> None:
    """Have this process die before or after a step, e.g. ``broker.claims:Claims._grant after``."""
    path, when = point.split(" ")
    module, _, names = path.partition(":")
    place: Any = import_module(module)
    *classes, name = names.split(".")
    for part in classes:
        place = getattr(place, part)
    step: Callable[..., Any] = getattr(place, name)

    def armed(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        step(*args, **kwargs)
        die()

    setattr(place, name, armed)


def act(queue: JobQueue, name: str, told: dict[str, Any]) -> None:
    """Do what a process may be in the midst of when it dies."""
    upkeep = Upkeep(queue)
    holder = Holder(worker_id="w", lease_id=told.get("lease_id"))
    job_id = told.get("job_id", "")
    request = ClaimRequest(worker_id="w", policy=Policy(), lease_seconds=60, claim_key="key")
    ids = told.get("task_ids", [])
    items: list[NewJob | Rejection] = [NewJob(task_id=i, queue="remote", type="echo") for i in ids]
    {
        "claim": lambda: queue.claim(request),
        "complete": lambda: queue.complete(job_id, holder, result={"x": 1}),
        "retry": lambda: queue.fail(job_id, holder, error_message="e", retryable=True),
        "fail": lambda: queue.fail(job_id, holder, error_message="e"),
        "release": lambda: queue.release(job_id, holder),
        "cancel": lambda: queue.cancel(job_id),
        "acknowledge": lambda: queue.cancel_ack(job_id, holder),
        "heartbeat": lambda: queue.heartbeat(job_id, holder, lease_seconds=60),
        "append": lambda: queue.append_events(
            job_id, holder, [NewEvent(message=f"m{n}", worker_seq=n) for n in range(3)]
        ),
        "ingest": lambda: queue.ingest(items),
        "expire": upkeep.expire,
        "reconcile": upkeep.reconcile,
    }[name]()


def run(order: dict[str, Any]) -> None:
    """Open the queue as it is, do what was ordered, and die on the way."""
    later_ms = order["later_ms"]
    reservations = Reservations.connect(order["redis"])
    clock = Clock(lambda: reservations.clock_ms() + later_ms)
    reservations = Reservations(
        reservations.client, now_ms=lambda: int(clock.now().timestamp() * 1000)
    )
    queue = JobQueue(Ledger(order["database"]), reservations, clock=clock, settings=QueueSettings())
    # what a builder that died still holds is looked at, however slow this machine is
    generations.BUILDING_MS = 600_000  # type: ignore[misc]
    if order["point"].startswith("broker.ledger."):
        # what is one statement has no steps in between
        at_once.can = lambda _ledger: False
    arm(order["point"])
    act(queue, order["action"], order["told"])


def main() -> None:
    """Take orders, a line each, and answer by which signal the process ended."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "alive", flush=True)


if __name__ == "__main__":
    main()
