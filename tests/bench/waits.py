"""How soon one of many waiting claims has a job that comes."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from tests.bench.measures import cuts_ms
from tests.bench.rig import HttpClient, Rig
from tests.processes import until

WAITERS: Final = (1, 200, 1000)
WAIT_S: Final = 50


def measure(made: Rig, *, rounds: int) -> list[dict[str, Any]]:
    """Let 1, 200 and 1,000 claims wait, and measure from a job's ingest to its worker."""
    return [{"waiters": waiters} | _run(made, waiters, rounds) for waiters in WAITERS]


def _run(made: Rig, waiters: int, rounds: int) -> dict[str, Any]:
    crowd = [made.client(f"waits-{waiters}-{at}") for at in range(waiters)]
    got: list[float] = []
    stopping = threading.Event()

    def wait(client: HttpClient) -> None:
        while not stopping.is_set():
            if client.claim(waitSeconds=WAIT_S):
                got.append(time.perf_counter())

    threads = [threading.Thread(target=wait, args=(client,), daemon=True) for client in crowd]
    for thread in threads:
        thread.start()
    settled = _parked(made, waiters)
    until(settled, 120, what=f"{waiters} claims wait")
    taken = []
    made.begin()
    for number in range(rounds):
        sent = time.perf_counter()
        made.fill(1)
        until(lambda number=number: len(got) > number, 60, what="a waiter got the job")
        taken.append(got[number] - sent)
        until(settled, 60, what="the waiter waits again")
    spent = made.spent_ms(rounds)
    stopping.set()
    made.fill(waiters)
    for thread in threads:
        thread.join(120)
    for client in crowd:
        client.close()
    return cuts_ms(taken) | {"edge CPU ms": spent["edge"]}


def _parked(made: Rig, waiters: int) -> Any:
    """Tell when all wait: the edge is quiet then, and only then."""
    state = {"used": -1.0}

    def quiet() -> bool:
        made.begin()
        time.sleep(0.2)
        state["used"] = made.spent_ms(1)["edge"]
        # looking again every few seconds is all that waiters do
        return state["used"] < 20 + waiters / 10

    return quiet
