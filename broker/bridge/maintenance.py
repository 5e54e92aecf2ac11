"""The tasks that beat sends and the bridge's pool executes: nudges, each one pass of a duty.

The bridge does all of it from threads of its own too, so a beat that is away, late or doubled
changes nothing. The tasks store nothing, show nowhere and vanish unexecuted once the next is due.
"""

from __future__ import annotations

import logging
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


class Routine(logging.Filter):
    """Keeps out of a log what Celery says of each nudge, six lines a second for ever.

    Whatever else is said of them, warnings too, stays; and at level DEBUG these lines do.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is worth keeping."""
        if record.levelno > logging.INFO:
            return True
        args = record.args
        said = args.get("name") if isinstance(args, Mapping) else args[-1] if args else None
        nudge = isinstance(said, str) and said.removeprefix(PREFIX) in EVERY_S
        return not nudge or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


#: one for the process: a logger takes the same filter but once
_ROUTINE: Final = Routine()
#: who says that a task was sent, has come, and has ended
_SAYERS: Final = ("celery.beat", "celery.worker.strategy", "celery.app.trace")


def quiet() -> None:
    """Let the logs of this process say what matters; a second call changes nothing."""
    for name in _SAYERS:
        logging.getLogger(name).addFilter(_ROUTINE)


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
