"""Which files of tests take longest: begun first, so that no one of them is left alone at the end.

Rough is enough: what is not named takes less than half a minute, and its turn comes later.
"""

from __future__ import annotations

from typing import Final

import pytest

#: slowest first
LONG: Final = (
    "faults/test_chaos.py",
    "e2e/test_up.py",
    "faults/test_kills.py",
    "e2e/test_bridge_rabbitmq.py",
    "unit/remote_worker/test_publish.py",
    "contract/test_state_machine.py",
    "e2e/test_demo.py",
    "e2e/test_bridge_drain.py",
    "e2e/test_spine.py",
    "e2e/test_canvas.py",
    "e2e/test_bridge_settle.py",
    "e2e/test_flower.py",
    "e2e/test_inspect.py",
    "e2e/test_exporter.py",
    "e2e/test_bridge_nodes.py",
    "e2e/test_bridge_brokers.py",
    "e2e/test_deployment.py",
    "attacks/test_worker_process.py",
    "attacks/test_description.py",
    "faults/worker/test_soak.py",
    "faults/test_crash_points.py",
    "contract/test_base_install.py",
    "attacks/test_worker_git.py",
    "faults/test_failover.py",
    "faults/test_cluster.py",
)


def longest_first(items: list[pytest.Item]) -> None:
    """Bring the tests of the named files to the front, and leave each file's own order alone."""
    turns = {f"tests/{file}": turn for turn, file in enumerate(LONG)}
    items.sort(key=lambda item: turns.get(item.nodeid.partition("::")[0], len(turns)))
