"""The command ``drawbridge redrive``."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result

from broker import cli
from broker.clock import Clock
from broker.commands.redrive import moment
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.states import Status
from tests.contract.test_redrive import dead

Run = Callable[..., Result]


@pytest.fixture
def live(ledger: Ledger, valkey_url: str) -> Iterator[JobQueue]:
    """Give a queue whose clock is the server's, as the command's is."""
    reservations = Reservations.connect(valkey_url)
    clock = Clock(reservations.clock_ms)
    yield JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    reservations.close()


@pytest.fixture
def run(ledger_url: str, valkey_url: str) -> Run:
    """Run the command on the same stores."""

    def run(*words: str) -> Result:
        env = {"DRAWBRIDGE_DATABASE_URL": ledger_url, "DRAWBRIDGE_RESERVATIONS_URL": valkey_url}
        return CliRunner(env=env).invoke(cli.drawbridge, ["redrive", *words])

    return run


def test_jobs_are_brought_back_by_id(live: JobQueue, run: Run) -> None:
    job = dead(live)
    dry = run(job.id, "--dry-run")
    assert (dry.exit_code, dry.output.splitlines()) == (
        0, [f"{job.id}  matched", "1 of 1 would be brought back."],
    )  # fmt: skip
    assert live.catalog.get(job.id).status is Status.DEAD_LETTER
    done = run(job.id)
    assert done.output.splitlines() == [f"{job.id}  redriven", "1 of 1 are queued again."]
    assert (live.catalog.get(job.id).run, live.catalog.get(job.id).requested_by) == (2, "cli")
    again = run(job.id)
    assert again.output.splitlines() == [f"{job.id}  not_dead", "0 of 1 are queued again."]
    assert again.exit_code == 0
    assert run("nonsense").exit_code == 1


def test_jobs_are_brought_back_by_filter(live: JobQueue, run: Run) -> None:
    ids = [dead(live, type="a").id for _ in range(3)]
    dead(live, type="b")
    words = ("--type", "a", "--status", "any", "--queue", "remote", "--since", "1h")
    done = json.loads(run(*words, "--limit", "2", "--max-rate", "0.5", "--json").output)
    assert (done["matched"], done["redriven"], done["more"]) == (2, 2, True)
    assert [one["id"] for one in done["items"]] == ids[:2]
    assert [one["nextAttemptAt"] is None for one in done["items"]] == [True, False]
    assert json.loads(run("--since", "2999-01-01", "--json").output)["items"] == []


@pytest.mark.parametrize(
    "words", [(), ("--dry-run",), ("some-id", "--type", "a"), ("--since", "soon"),
              ("--max-rate", "0", "x"), ("--status", "queued")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(live: JobQueue, run: Run, words: tuple[str, ...]) -> None:
    job = dead(live)
    assert run(*words).exit_code == 2
    assert live.catalog.get(job.id).status is Status.DEAD_LETTER


def test_a_moment_is_a_date_or_how_long_ago() -> None:
    now = datetime(2026, 7, 1, tzinfo=UTC)
    assert moment("36h", now) == now - timedelta(hours=36)
    assert moment("2026-06-30", now) == now - timedelta(days=1)
    assert moment("2026-06-30T02:00:00+02:00", now) == now - timedelta(days=1)
