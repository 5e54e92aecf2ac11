"""What every attack has at hand: an edge on real stores, callers, and proof that nothing changed.

A test says by ``@pytest.mark.attack(…)`` which numbers of the threat model's list it is; README.md
has the same as a table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.contract.edge.conftest import (
    Caller,
    Edge,
    MakeEdge,
    check,
    edge,
    environment,
    make_edge,
    served,
    spare_apps,
    sqlite_url,
    start_served,
    user,
    worker,
)

__all__ = [
    "Caller",
    "Edge",
    "MakeEdge",
    "check",
    "edge",
    "environment",
    "make_edge",
    "refusal",
    "served",
    "spare_apps",
    "sqlite_url",
    "start_served",
    "unchanged",
    "user",
    "worker",
]


@contextmanager
def unchanged(target: Edge) -> Iterator[None]:
    """Prove that what happens inside changes no row, no key and no file.

    Rows of the audit, what was seen when, and counters of rate limits are no change.
    """
    before = target.state()
    yield
    assert target.state() == before


def refusal(answer: Any) -> tuple[int, str]:
    """Return status and code of an answer that must be a refusal."""
    return answer.status_code, answer.json["detail"]["code"]
