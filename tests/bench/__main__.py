"""`make bench`: measures what is asked for by name, one database after another, and prints it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from typing import Any, Final

import click

from tests.bench import beside, claims, cycles, ingest, nodes, orders, settle, waits
from tests.bench.measures import table
from tests.bench.rig import rig

#: each with what it measures
ITEMS: Final = {
    "beside": "throughput and latency beside a native Celery worker, and where the time goes",
    "settle": "from a complete to AsyncResult.get(), one job at a time",
    "ingest": "messages a second into the ledger, beside what a native worker consumes",
    "cycles": "claim and complete by 1, 8 and 32 clients, single and in batches, CPU of each",
    "depth": "claims beside 0, 10,000, 100,000 queued jobs; --depths for others",
    "lanes": "claims over 1, 100 and 1,000 lanes",
    "empties": "16 claims at once for 16 jobs: how many come back empty",
    "nodes": "what 100 and 1,000 remote workers cost as Celery nodes; --nodes for others",
    "waits": "from a job's ingest to one of 1, 200, 1,000 waiting claims; --waiters for others",
    "orders": "from an operator's order to one of 200, 1,000 waiting workers; --waiters for others",
}


@click.command(help="Measure ITEMS, or all:\n\n\b\n" + "\n".join(map(": ".join, ITEMS.items())))
@click.argument("items", nargs=-1, type=click.Choice(list(ITEMS)))
@click.option("--database", "databases", multiple=True, help="sqlite, postgres or a URL; both.")
@click.option("--database-url", help="The same for a ledger that is there already.")
@click.option("--jobs", default=1000, show_default=True, help="Jobs of one throughput run.")
@click.option("--singles", default=200, show_default=True, help="Claims or jobs one by one.")
@click.option("--rounds", default=20, show_default=True, help="Rounds of waits and of empties.")
@click.option("--depths", default="0,10000,100000", show_default=True, help="Queued jobs.")
@click.option("--waiters", default="1,200,1000", show_default=True, help="Waiting claims.")
@click.option("--processes", default=1, show_default=True, help="Processes of the edge.")
@click.option("--nodes", "fleets", default="100,1000", show_default=True, help="Remote workers.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one line of JSON.")
def main(
    items: tuple[str, ...],
    databases: tuple[str, ...],
    database_url: str | None,
    *,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Measure and print."""
    told = (*databases, *((database_url,) if database_url else ())) or ("sqlite", "postgres")
    figures: dict[str, Any] = {"machine": _machine()}
    if not as_json:
        click.echo(figures["machine"])
    for database in told:
        for item in items or ITEMS:
            found = _measure(item, database, **sizes)
            figures[f"{item} {database}"] = found
            if not as_json:
                lines = beside.shown(found) if item == "beside" else table(found)
                click.echo("\n".join(["", f"{item}, {database}:", *lines]))
    if as_json:
        click.echo(json.dumps(figures))


def _measure(
    item: str,
    database: str,
    *,
    jobs: int,
    singles: int,
    rounds: int,
    depths: str,
    waiters: str,
    processes: int,
    fleets: str,
) -> Any:
    if item == "nodes":
        return nodes.measure([int(one) for one in fleets.split(",")])
    by_stack: dict[str, Callable[[], Any]] = {
        "beside": lambda: beside.measure(database, jobs=jobs, singles=singles),
        "settle": lambda: settle.measure(database, singles=singles),
        "ingest": lambda: ingest.measure(database, jobs=jobs),
    }
    if item in by_stack:
        return by_stack[item]()
    if item == "depth":
        asked = [int(one) for one in depths.split(",")]
        return claims.depth(
            lambda: rig(database, processes=processes), depths=asked, claims=singles
        )
    if item == "lanes":
        return claims.lanes(lambda: rig(database, processes=processes), claims=singles)
    with rig(database, processes=processes) as made:
        if item in {"cycles", "empties"}:
            by_cycles = item == "cycles"
            return (
                cycles.measure(made, jobs=jobs)
                if by_cycles
                else claims.empties(made, rounds=rounds)
            )
        crowds = [int(one) for one in waiters.split(",")]
        measure = orders.measure if item == "orders" else waits.measure
        return measure(made, crowds=crowds, rounds=rounds)


def _machine() -> str:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, load before {load}"


if __name__ == "__main__":
    main()
