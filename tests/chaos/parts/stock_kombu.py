"""The suite bites: stock kombu consumption in place of the drain is found out by the oracle."""

import sys
import time
import uuid
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from celery import Celery

from broker.ledger.migrate import upgrade
from tests.chaos.oracle import INVARIANTS, figures
from tests.chaos.promises import Flight, PromiseLog
from tests.chaos.reading import Places, engine_at, facts_of, left_in_broker
from tests.chaos.report import Options, PartReport, Violation
from tests.processes import Process
from tests.services import Valkey

ROOT: Final = Path(__file__).resolve().parents[3]
#: Not a multiple of the consumer's batch.
MESSAGES: Final = 210
KILLS: Final = 3


def run(options: Options) -> PartReport:
    """Kill a stock consumer in the midst of a backlog; not to find a loss is the violation."""
    begun = time.monotonic()
    broker, reservations = Valkey().start(), Valkey().start()
    try:
        places = _places(options.folder, broker, reservations)
        upgrade(places.database_url)
        _send(places)
        for number in range(KILLS):
            _consume_and_kill(places, goal=40 * (number + 1))
        facts = facts_of(places)
    finally:
        broker.remove()
        reservations.remove()
    found = list(INVARIANTS["I1"](facts))
    lost = figures(facts, found)["lost"]
    silent = Violation("self-test", "", "stock kombu consumption was not found out")
    return PartReport(
        name="stock kombu",
        seconds=time.monotonic() - begun,
        figures={"messages": MESSAGES, "kills": KILLS, "found lost (must not be 0)": lost},
        violations=() if lost else (silent,),
    )


def _places(folder: Path, broker: Valkey, reservations: Valkey) -> Places:
    promises = folder / "promises"
    promises.mkdir()
    return Places(
        database_url=f"sqlite:///{folder / 'ledger.sqlite3'}",
        reservations_url=reservations.url,
        broker_url=broker.url,
        backend_url=broker.url.removesuffix("/0") + "/1",
        artifacts=folder / "artifacts",
        promises=promises,
        queue="remote",
        links="local",
    )


def _send(places: Places) -> None:
    log = PromiseLog(places.promises, "producer", Flight())
    with Celery(broker=places.broker_url, set_as_current=False) as app:
        for _ in range(MESSAGES):
            task_id = str(uuid.uuid4())
            with log.call("send", job=task_id, what={}) as pending:
                app.send_task("echo", kwargs={"tag": task_id}, queue="remote", task_id=task_id)
                pending.told(200)
    log.close()


def _consume_and_kill(places: Places, *, goal: int) -> None:
    argv = [sys.executable, "-m", "tests.chaos.stock_consumer", places.broker_url]
    argv += [places.database_url, places.reservations_url, places.queue]
    engine = engine_at(places.database_url)

    def taken() -> bool:
        with engine.connect() as conn:
            count = int(conn.execute(sa.text("SELECT count(*) FROM jobs")).scalar_one())
        # what earlier kills have lost may put the goal out of reach
        return count >= goal or not left_in_broker(places)

    with Process(argv, log=places.promises.parent / "consumer.log", cwd=ROOT) as consumer:
        consumer.until(taken, 60, what="some were taken")
        consumer.kill()
    engine.dispose()
