"""How many jobs a second go through the edge, and what each costs its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final

from tests.bench.rig import HttpClient, Rig

CLIENTS: Final = (1, 8, 32)
BATCH: Final = 20

#: ends as many jobs as it says, until there are none
Mode = Callable[[HttpClient], int]


def measure(made: Rig, *, jobs: int) -> list[dict[str, Any]]:
    """Run claim and complete by 1, 8 and 32 clients: one by one, with claimNext, and in batches."""
    modes: dict[str, Mode] = {"single": _single, "claimNext": _next, "batch of 20": _batches}
    rows = []
    for clients in CLIENTS:
        workers = [made.client(f"cycles-{clients}-{at}") for at in range(clients)]
        for name, mode in modes.items():
            rows.append({"mode": name, "clients": clients} | _run(made, workers, mode, jobs))
        for worker in workers:
            worker.close()
    return rows


def _run(made: Rig, workers: Sequence[HttpClient], mode: Mode, jobs: int) -> dict[str, Any]:
    made.fill(jobs)
    with ThreadPoolExecutor(len(workers)) as pool:
        made.begin()
        began = time.perf_counter()
        # a call that was refused raises here, with its status
        ended = sum(pool.map(mode, workers))
        taken = time.perf_counter() - began
    assert ended == jobs, f"an empty answer while there were jobs: {ended} of {jobs} ended"
    spent = {f"{role} CPU ms": used for role, used in made.spent_ms(jobs).items()}
    return {"jobs/s": jobs / taken} | spent


def _single(client: HttpClient) -> int:
    ended = 0
    while found := client.claim():
        client.post(f"/jobs/{found[0]['id']}/complete", {"leaseId": found[0]["leaseId"]})
        ended += 1
    return ended


def _next(client: HttpClient) -> int:
    ended, found = 0, client.claim()
    while found:
        said = client.post(
            f"/jobs/{found[0]['id']}/complete",
            {"leaseId": found[0]["leaseId"], "claimNext": {"leaseSeconds": 600}},
        )
        ended, found = ended + 1, said["next"]["jobs"]
    return ended


def _batches(client: HttpClient) -> int:
    more = {"leaseSeconds": 600, "maxJobs": BATCH}
    ended, found = 0, client.claim(maxJobs=BATCH)
    while found:
        items = [{"jobId": job["id"], "leaseId": job["leaseId"]} for job in found]
        said = client.post("/jobs/complete", {"items": items, "claimNext": more})
        ended += sum(one["status"] == HTTPStatus.OK for one in said["items"])
        found = said["next"]["jobs"]
    return ended
