"""The queue under seeded schedules: many runs keep every promise, and a broken queue breaks some.

A run that fails names its seed; `python -m tests.simulation.run --seed N --mix NAME` repeats it.
"""

from __future__ import annotations

import random

import pytest

from tests.services import in_ci
from tests.simulation.bugs import BUGS
from tests.simulation.run import MIXES, run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: runs of each mix
RUNS = 2
#: seeds that finding a bug may take; most are found by one in two
ENOUGH = 40


@pytest.mark.parametrize("mix", MIXES)
def test_a_run_of_any_schedule_keeps_every_promise(mix: str):
    # one piece of code gets one verdict in CI; at home every run goes elsewhere
    first = 1000 if in_ci() else random.randrange(2**32)
    results = [run(first + at, MIXES[mix]) for at in range(RUNS)]
    assert not [str(result) for result in results if result.broken]
    figures = [result.figures for result in results]
    assert sum(one["granted"] for one in figures) > 0
    assert sum(one["stale_rejected"] for one in figures) > 0, "nobody tried"
    faults = MIXES[mix].faults
    assert bool(sum(sum(result.struck.values()) for result in results)) == bool(
        faults.kill or faults.fail
    )


def test_a_seed_is_a_whole_story():
    first, second = run(7, MIXES["all"]), run(7, MIXES["all"])
    assert first == second


@pytest.mark.parametrize("bug", BUGS)
def test_each_seeded_bug_is_found(bug: str):
    with BUGS[bug].made():
        runs = (run(seed, MIXES["writes"]) for seed in range(1000, 1000 + ENOUGH))
        assert any(BUGS[bug].found(result.broken) for result in runs)
