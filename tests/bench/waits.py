"""How soon one of many waiting claims has a job that comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.bench.measures import cuts_ms
from tests.bench.rig import HttpClient, Refused, Rig
from tests.processes import until

WAIT_S: Final = 50
#: claims that start at once
CROWD: Final = 25


def measure(made: Rig, *, crowds: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Let some claims wait, and measure from a job's ingest to its worker."""
    return [{"waiters": waiters} | _run(made, waiters, rounds) for waiters in crowds]


def _run(made: Rig, waiters: int, rounds: int) -> dict[str, Any]:
    crowd = [made.client(f"waits-{waiters}-{at}") for at in range(waiters)]
    got: list[float] = []
    stopping = threading.Event()

    def wait(client: HttpClient) -> None:
        while not stopping.is_set():
            try:
                found = client.claim(waitSeconds=WAIT_S)
            except (Refused, OSError):
                # a busy machine: as a worker does, ask again
                stopping.wait(1.0)
                continue
            if found:
                got.append(time.perf_counter())

    threads = [threading.Thread(target=wait, args=(client,), daemon=True) for client in crowd]
    for at, thread in enumerate(threads):
        thread.start()
        if at % CROWD == CROWD - 1:
            # all at once they would wait for one another's first claim
            time.sleep(0.5)
    settled = parked(made, waiters)
    until(settled, 120, what=f"{waiters} claims wait")
    taken, woken = [], []
    for _ in range(rounds):
        # whoever came first may have found what an earlier crowd left
        before = len(got)
        sent = time.perf_counter()
        made.fill(1)
        told = time.perf_counter()
        until(lambda before=before: len(got) > before, 60, what="a waiter got the job")
        taken.append(got[before] - sent)
        woken.append(max(0.0, got[before] - told))
        until(settled, 60, what="the waiter waits again")
    stopping.set()
    made.fill(waiters)
    for thread in threads:
        thread.join(120)
    for client in crowd:
        client.close()
    return cuts_ms(taken) | {
        f"{name} once ingested": value for name, value in cuts_ms(woken).items()
    }


def parked(made: Rig, waiters: int) -> Any:
    """Tell when all wait: the edge is quiet then, and only then."""
    state = {"used": -1.0}

    def quiet() -> bool:
        made.begin()
        time.sleep(0.2)
        state["used"] = made.spent_ms(1)["edge"]
        # looking again every few seconds is all that waiters do
        return state["used"] < 20 + waiters / 10

    return quiet
