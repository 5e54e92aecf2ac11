"""Celery events in the names of remote workers: the only place that knows their wire form.

Events of tasks go out as one ``task.multi`` list per flush, which every receiver of Celery's own
understands, whatever nodes they speak of. Events of workers go one by one: the gossip of ordinary
workers listens to ``worker.#`` and cannot read lists.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery
from celery.events.event import Event, get_exchange
from celery.utils.time import utcoffset
from kombu.messaging import Producer

from broker.records import Json

#: events in one message
MULTI_MAX: Final = 100


class Announcer:
    """One connection's events; threads may share one."""

    def __init__(self, app: Celery) -> None:
        """Announce on the app's broker; connects with the first event."""
        self._app = app
        self._lock = threading.Lock()
        self._connection: Any = None
        self._producer: Any = None
        self._exchange: Any = None
        self._tasks: list[dict[str, Json]] = []

    def task(self, kind: str, node: str, fields: Mapping[str, Json], *, at: float) -> None:
        """Keep an event of a task for the next flush."""
        with self._lock:
            self._tasks.append(self._event(kind, node, dict(fields), at))

    def flush(self) -> None:
        """Send the kept events; on failure they are dropped, since their rows will be tried again.

        Raises:
            OperationalError: the broker is away.
        """
        with self._lock:
            events, self._tasks = self._tasks, []
            for at in range(0, len(events), MULTI_MAX):
                self._publish(events[at : at + MULTI_MAX], "task.multi")

    def worker(self, kind: str, node: str, fields: Mapping[str, Json], *, at: float) -> None:
        """Send an event of a worker at once.

        Raises:
            OperationalError: the broker is away.
        """
        with self._lock:
            self._publish(self._event(kind, node, dict(fields), at), kind.replace("-", "."))

    def close(self) -> None:
        """Close the connection; the next event opens another."""
        with self._lock:
            self._drop()

    def _event(self, kind: str, node: str, fields: dict[str, Json], at: float) -> dict[str, Json]:
        event: dict[str, Json] = Event(
            kind, hostname=node, utcoffset=utcoffset(), pid=os.getpid(),
            clock=self._app.clock.forward(), timestamp=at, **fields,
        )  # fmt: skip
        return event

    def _publish(self, body: Json, routing_key: str) -> None:
        try:
            producer = self._producer or self._open()
            producer.publish(
                body,
                exchange=self._exchange.name,
                routing_key=routing_key,
                declare=[self._exchange],
                serializer=self._app.conf.event_serializer,
                headers={"hostname": "drawbridge"},
                delivery_mode=1,
                # a pooled connection may have died unnoticed: one new one, then it is an outage
                retry=True,
                retry_policy={"max_retries": 1, "interval_start": 0},
            )
        except BaseException:
            self._drop()
            raise

    def _open(self) -> Any:
        self._connection = self._app.connection_for_write()
        self._exchange = get_exchange(self._connection, name=self._app.conf.event_exchange)
        make: Any = Producer
        self._producer = make(self._connection, auto_declare=False)
        return self._producer

    def _drop(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()
