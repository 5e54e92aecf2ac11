"""`make soak`: many short jobs through 4 slots while worker and edge are killed; prints figures."""

import random
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import click

from tests.processes import Process
from tests.soak.soak import Soak, told


@click.command()
@click.option("--jobs", default=500, show_default=True)
@click.option("--worker-kills", default=8, show_default=True)
@click.option("--edge-kills", default=8, show_default=True)
@click.option("--seed", type=int, default=None, help="To do the same again.")
def main(*, jobs: int, worker_kills: int, edge_kills: int, seed: int | None) -> None:
    """Run it once."""
    seed = random.randrange(2**32) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    numbers = count()
    started: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:

        def process(argv: Any, **more: Any) -> Process:
            log = Path(folder) / f"{next(numbers)}.log"
            more.pop("name", None)
            started.append(Process(argv, log=log, **more))
            return started[-1]

        try:
            soak = Soak(process, Path(folder), seed=seed)
            figures = soak.run(jobs=jobs, worker_kills=worker_kills, edge_kills=edge_kills)
        finally:
            for one in reversed(started):
                one.close()
    click.echo(told(figures))


main()
