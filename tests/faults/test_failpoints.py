"""Each step of each call ended in one way or another; `make chaos` ends each in all three.

The steps are found by running the call (tests/simulation/failpoints.py), on stores in memory;
test_crash_points kills real processes on real ones.
"""

from __future__ import annotations

import random

import pytest

from broker.reservations import scripts
from tests.services import in_ci
from tests.simulation.bugs import BUGS
from tests.simulation.calls import CALLS
from tests.simulation.failpoints import cases, cut, play, reference

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_cut_at_any_step_is_whole_or_nothing_and_its_repeat_is_answered(call: str):
    expected, points = reference(CALLS[call])
    some = cut(cases(call, points), 0 if in_ci() else random.randrange(2), of=2)
    assert len({case.at for case in some}) >= len(points) // 2
    assert not [wrong for case in some for wrong in play(case, expected)]


def test_every_script_and_every_write_is_cut():
    passed = {point.split(" ")[1] for call in CALLS.values() for point in reference(call)[1]}
    # heads only reads, and only where a worker sees several queues
    assert {f"redis.{name}" for name in scripts.NAMES if name != "heads"} <= passed
    assert {"ledger.write", "broker.fetch", "broker.settle", "celery.store"} <= passed


@pytest.mark.parametrize(
    "bug, call",
    [
        ("ack_before_insert", "ingest"),
        ("settle_marked_before_done", "relay"),
        ("answer_before_commit", "complete"),
        ("no_reconcile_of_jobs", "reconcile"),
        ("outbox_outside_the_transaction", "complete"),
    ],
)
def test_a_bug_that_tears_a_call_apart_is_found(bug: str, call: str):
    expected, points = reference(CALLS[call])
    with BUGS[bug].made():
        assert any(play(case, expected) for case in cases(call, points))
