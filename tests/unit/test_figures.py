"""Figures: bounded labels, processes that count as one, and the warning that goes with them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from broker.bridge.gauges import AGAIN_S, OutboxWatch
from broker.figures import OTHER, Pairs

COUNT = """
from broker import figures
from edge_api import figures as edge
figures.moved("remote", "t", "grant")
edge.answered(method="GET", route="/healthz", status=200, seconds=0.01)
edge.WAITING.inc()
"""
TELL = "from broker import figures; print(figures.text().decode())"


def test_labels_are_bounded() -> None:
    pairs = Pairs(most=2)
    assert [pairs("q", name) for name in "abcab"] == [
        ("q", "a"), ("q", "b"), (OTHER, OTHER), ("q", "a"), ("q", "b"),
    ]  # fmt: skip


def test_several_processes_tell_the_sum(tmp_path: Path) -> None:
    def run(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True,
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    for _ in range(3):
        run(COUNT)
    lines = run(TELL).splitlines()
    assert 'drawbridge_transitions_total{queue="remote",trigger="grant",type="t"} 3.0' in lines
    assert 'drawbridge_request_seconds_count{method="GET",route="/healthz"} 3.0' in lines


def test_a_late_outbox_is_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    behind = 61.0
    now = 0.0
    watch = OutboxWatch(lambda: behind, warn_s=60.0, monotonic=lambda: now)
    caplog.set_level(logging.INFO)

    def said() -> list[str]:
        watch.look()
        levels = [record.levelname for record in caplog.records]
        caplog.clear()
        return levels

    assert said() == ["WARNING"]
    now = AGAIN_S - 1
    assert said() == []
    now = AGAIN_S
    assert said() == ["WARNING"]
    behind = 60.0
    assert said() == ["INFO"]
    assert said() == []
