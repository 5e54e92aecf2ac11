"""Ordinary workers on a bridged queue: they take its tasks away, and reject what they do not know.

Nobody can forbid them the queue, but it must not go on in silence. Remote workers are not asked:
they are nodes of ours, and there may be thousands.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Final

from celery import Celery

logger = logging.getLogger(__name__)

#: between looks; each ordinary worker answers one message
LOOK_S: Final = 60.0
_ANSWER_S: Final = 3.0


class Strangers:
    """Looks who else consumes the bridged queues; used by one thread."""

    def __init__(self, app: Celery, *, queues: Collection[str], suffix: str) -> None:
        """Ask all nodes but those with our suffix, in which ``%w`` stands for a worker's id."""
        self._app = app
        self._queues = frozenset(queues)
        ours = ".*".join(map(re.escape, suffix.split("%w")))
        self._others = f"^(?!.*@{ours}$)"
        self._told: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Name those that are there, each once while it stays.

        Raises:
            OperationalError: the Celery broker is away.
        """
        asked = self._app.control.inspect(
            timeout=_ANSWER_S, pattern=self._others, matcher="pcre", app=self._app
        )
        found = {
            (node, queue["name"])
            for node, queues in (asked.active_queues() or {}).items()
            for queue in queues or ()
            if queue["name"] in self._queues
        }
        for node, queue in sorted(found - self._told):
            logger.error(
                "the ordinary worker %s consumes the bridged queue %s: tasks that it does not know "
                "are rejected by it, and lost; start it with a -Q that does not name that queue",
                node, queue, extra={"action": "strangers"},
            )  # fmt: skip
        self._told = found
