"""The tasks that beat sends and the bridge's pool executes: nudges, each one pass of a duty.

The bridge does all of it from threads of its own too, so a beat that is away, late or doubled
changes nothing. The tasks store nothing, show nowhere and vanish unexecuted once the next is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from celery import Celery

#: the queue of these tasks, and of Celery's own that land in bridged queues
QUEUE: Final = "drawbridge.maintenance"
PREFIX: Final = "drawbridge."

#: what is to be done, and how often, in seconds
EVERY_S: Final[Mapping[str, float]] = MappingProxyType(
    {
        "expire_leases": 1.0,
        "release_due_retries": 1.0,
        "relay_outbox": 5.0,
        "reconcile": 5.0,
        "prune": 3600.0,
    }
)


def schedule() -> dict[str, dict[str, Any]]:
    """Return beat's schedule."""
    return {
        PREFIX + duty: {
            "task": PREFIX + duty,
            "schedule": every_s,
            "options": {"queue": QUEUE, "expires": every_s, "ignore_result": True},
        }
        for duty, every_s in EVERY_S.items()
    }


def register(app: Celery, work: Callable[[str], None]) -> None:
    """Register the tasks; each calls ``work`` with the name of its duty."""
    for duty in EVERY_S:
        name = PREFIX + duty
        if name in app._tasks:  # noqa: SLF001  asking ``tasks`` would finalise the app
            continue

        def run(duty: str = duty) -> None:
            work(duty)

        app.task(
            run, name=name, ignore_result=True, store_errors_even_if_ignored=False,
            send_events=False, typing=False, shared=False,
        )  # fmt: skip
