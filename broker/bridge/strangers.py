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

from broker import figures

logger = logging.getLogger(__name__)

#: between looks; each ordinary worker answers one message
LOOK_S: Final = 60.0
_ANSWER_S: Final = 3.0


class Strangers:
    """Looks who else consumes the bridged queues; used by one thread."""

    def __init__(
        self, app: Celery, *, queues: Collection[str], suffix: str, answer_s: float = _ANSWER_S
    ) -> None:
        """Ask all nodes but those with our suffix, in which ``%w`` stands for a worker's id."""
        self._app = app
        self._answer_s = answer_s
        self._queues = frozenset(queues)
        ours = ".*".join(map(re.escape, suffix.split("%w")))
        self._others = f"^(?!.*@{ours}$)"
        self._told: set[tuple[str, str]] = set()

    def found(self) -> set[tuple[str, str]]:
        """Ask for those that are there, each with a bridged queue that it consumes.

        Raises:
            OperationalError: the Celery broker is away.
        """
        asked = self._app.control.inspect(
            timeout=self._answer_s, pattern=self._others, matcher="pcre", app=self._app
        )
        return {
            (node, queue["name"])
            for node, queues in (asked.active_queues() or {}).items()
            for queue in queues or ()
            if queue["name"] in self._queues
        }

    def look(self) -> None:
        """Name those that are there, each once while it stays, and tell how many there are.

        Raises:
            OperationalError: the Celery broker is away.
        """
        found = self.found()
        for queue in self._queues:
            figures.ordinary_workers(queue, sum(queue == taken for _, taken in found))
        for node, queue in sorted(found - self._told):
            logger.error(
                "the ordinary worker %s consumes the bridged queue %s: tasks that it does not know "
                "are rejected by it, and lost; start it with a -Q that does not name that queue",
                node, queue, extra={"action": "strangers"},
            )  # fmt: skip
        self._told = found
