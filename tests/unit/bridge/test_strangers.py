"""Whom the bridge asks whether they consume its queues."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from broker.bridge.strangers import Strangers


def asked(suffix: str) -> re.Pattern[str]:
    """Return the pattern of those that are asked."""
    patterns: list[str] = []

    def inspect(*, pattern: str, **_: Any) -> Any:
        patterns.append(pattern)
        return SimpleNamespace(active_queues=lambda: None)

    app: Any = SimpleNamespace(control=SimpleNamespace(inspect=inspect))
    Strangers(app, queues={"remote"}, suffix=suffix).look()
    return re.compile(patterns[0])


@pytest.mark.parametrize("suffix, node", [("edge", "w-1@edge"), ("%w.edge", "w-1@w-1.edge")])
def test_ordinary_workers_are_asked_and_nodes_of_ours_are_not(suffix: str, node: str):
    pattern = asked(suffix)
    assert not pattern.match(node)
    for other in ("celery@host", "w-1@edge.example", "w-1@wedge"):
        assert pattern.match(other), other
