"""A cut of `make soak`: one kill of each kind, and nothing is lost, doubled or left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Process, until
from tests.soak.soak import Soak, orphans, told

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]


def test_each_job_ends_once_whoever_is_killed(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    figures = Soak(process, tmp_path, seed=7).run(jobs=24, worker_kills=1, edge_kills=1)
    print(told(figures))
    assert figures.statuses == {"succeeded": 24}
    assert figures.ends_wrong == 0
    assert figures.left == 0
    until(lambda: not orphans(tmp_path), 30, what="no process of a job is left")
