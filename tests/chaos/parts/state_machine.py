"""The queue against a model of the contract, on real servers; see tests/contract."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from broker.ledger import migrate
from broker.ledger.engine import Ledger
from tests.chaos.report import Options, PartReport, Violation
from tests.contract.test_state_machine import QueueMachine, settings_of
from tests.services import Postgres, Valkey

#: examples between two looks at the time
EXAMPLES = 10
#: of the time of a part that counts it
SHARE = 0.6


def run(options: Options) -> PartReport:
    """Run examples on each database for its share of the time."""
    started = time.monotonic()
    figures: dict[str, float | str] = {}
    violations: list[Violation] = []
    valkey = Valkey().start()
    try:
        for database in options.databases:
            with _ledger(database, options.folder) as ledger:
                until = time.monotonic() + options.seconds * SHARE / len(options.databases)
                done, wrong = _examples(ledger, valkey.url, options.seed, until=until)
            figures[f"examples_{database}"] = done
            violations += wrong
    finally:
        valkey.remove()
    return PartReport("state machine", time.monotonic() - started, figures, tuple(violations))


def _examples(
    ledger: Ledger, redis_url: str, seed: int, *, until: float
) -> tuple[int, list[Violation]]:
    done = 0
    while not done or time.monotonic() < until:
        machine = type("Machine", (QueueMachine,), {"ledger": ledger, "redis_url": redis_url})
        hypothesis.seed(seed + done)(machine)
        try:
            run_state_machine_as_test(machine, settings=settings_of(EXAMPLES))
        except AssertionError as error:
            why = f"seed {seed + done}, {ledger.dialect}: {error}"
            notes = "\n".join(getattr(error, "__notes__", ()))
            return done, [Violation("model", "any", f"{why}\n{notes}")]
        done += EXAMPLES
    return done, []


@contextmanager
def _ledger(database: str, folder: Path) -> Iterator[Ledger]:
    """Give a ledger without jobs."""
    server = None if database == "sqlite" else Postgres().start()
    url = f"sqlite:///{folder / 'machine.db'}" if server is None else server.create_database()
    migrate.upgrade(url)
    ledger = Ledger(url, synchronous="NORMAL")
    try:
        yield ledger
    finally:
        ledger.close()
        if server is not None:
            server.remove()
