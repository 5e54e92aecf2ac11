"""Jobs by hand, and a ledger that holds them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.engine import Ledger
from broker.ledger.migrate import upgrade
from broker.records import Job
from broker.states import Status

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ID = "3fbb8d6a-51b1-4d5e-9f0f-0a9f6b1d3c11"


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Make a job of whatever matters to a test."""

    def make(**fields: Any) -> Job:
        values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
        values |= {
            "id": ID, "task_id": ID, "queue": "remote", "type": "codex_exec", "seq": 1, "run": 1,
            "version": 2, "status": Status.SUCCEEDED, "priority": 0, "payload": {"n": 1},
            "lane": "l", "lane_spec": "[]", "attempt": 1, "max_attempts": 3, "fence": 1,
            "retries": 0, "created_at": NOW, "updated_at": NOW,
        }  # fmt: skip
        return Job(**(values | fields))

    return make


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Give an empty ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    upgrade(url)
    made = Ledger(url, synchronous="NORMAL")
    yield made
    made.close()
