"""What a claim costs beside many jobs and many lanes, and whether it is ever wrongly empty."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tests.bench.measures import cuts_ms
from tests.bench.rig import HttpClient, Rig

LANES: Final = (1, 100, 1000)
PARALLEL: Final = 16


def depth(make: Callable[[], Any], *, depths: Sequence[int], claims: int) -> list[dict[str, Any]]:
    """Claim from queues of growing depth: whatever is first, and only what came last of all."""
    rows = []
    for queued in depths:
        with make() as made:
            if queued:
                made.flood(queued, type_="crowd")
            made.fill(2 * claims + 2, type_="rare")
            for name, types in (("only the last", ["rare"]), ("any", None)):
                client = made.client(f"depth-{name.split()[0]}")
                wanted = {} if types is None else {"allowedTypes": types}
                # a first claim may have to build the index
                client.claim(**wanted)
                made.begin()
                taken = _time(client, claims, wanted)
                rows.append(
                    {"queued": queued, "policy": name}
                    | cuts_ms(taken)
                    | {"edge CPU ms": made.spent_ms(claims)["edge"]}
                )
                client.close()
    return _ratios(rows, "policy")


def lanes(make: Callable[[], Any], *, claims: int) -> list[dict[str, Any]]:
    """Claim from one queue whose jobs lie in 1, 100 and 1,000 lanes."""
    rows = []
    for count in LANES:
        with make() as made:
            made.fill(max(4 * claims, 4 * count), lanes=count, repository="bench/r")
            last = {"repositories": (f"github.com/bench/r{count - 1}",)}
            for name, policy in (("any", {}), ("only the last", last)):
                if policy:
                    made.fill(2 * claims, repository=f"bench/r{count - 1}")
                client = made.client(f"lanes-{name.split()[0]}", **policy)
                client.claim()
                made.begin()
                taken = _time(client, claims, {})
                spent = made.spent_ms(claims)
                rows.append(
                    {"lanes": count, "policy": name}
                    | cuts_ms(taken)
                    | {"edge CPU ms": spent["edge"], "Redis CPU ms": spent["reservations"]}
                )
                client.close()
    return _ratios(rows, "policy")


def empties(made: Rig, *, rounds: int) -> list[dict[str, Any]]:
    """Let 16 workers claim 16 jobs at once, over and over; nobody may go away empty."""
    workers = [made.client(f"parallel-{at}") for at in range(PARALLEL)]
    wrong = 0
    taken: list[float] = []
    for _ in range(rounds):
        made.fill(PARALLEL)
        with ThreadPoolExecutor(PARALLEL) as pool:
            start = threading.Barrier(PARALLEL)
            found = list(pool.map(lambda worker, start=start: _claim(worker, start), workers))
        wrong += sum(not jobs for jobs, _ in found)
        taken += [took for _, took in found]
    for worker in workers:
        worker.close()
    return [{"claims": rounds * PARALLEL, "false empties": wrong} | cuts_ms(taken)]


def _claim(worker: HttpClient, start: threading.Barrier) -> tuple[int, float]:
    start.wait()
    began = time.perf_counter()
    return len(worker.claim()), time.perf_counter() - began


def _time(client: HttpClient, claims: int, wanted: dict[str, Any]) -> list[float]:
    taken = []
    for _ in range(claims):
        began = time.perf_counter()
        found = client.claim(**wanted)
        taken.append(time.perf_counter() - began)
        assert found, "an empty answer while there were jobs"
    return taken


def _ratios(rows: list[dict[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Compare each with the first of its kind."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        base = first.setdefault(tuple(row[key] for key in by), row)
        row["p50 ratio"] = row["p50_ms"] / base["p50_ms"]
        row["CPU ratio"] = row["edge CPU ms"] / base["edge CPU ms"] if base["edge CPU ms"] else 0.0
    return rows
