"""Celery's remote control for the fleet: one mailbox that answers under the name of every node.

One queue a node would be one Redis connection a node; here one mailbox hears what is broadcast and
sends one reply per node. Revokes are heard by every bridge, since a broadcast comes only once, and
the stock handlers of this process are replaced: they would write REVOKED for jobs that run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import Panel
from kombu.exceptions import OperationalError
from kombu.matcher import match

from broker.bridge.answers import REVOKES, Answers
from broker.bridge.commands import Commands
from broker.bridge.nodes import Fleet
from broker.bridge.revokes import Revoke, Revokes
from broker.records import Json

logger = logging.getLogger(__name__)

#: how long one look at the mailbox waits
LISTEN_S: Final = 0.5
#: by when a broker that fell silent is noticed; a mailbox never speaks first
HEARTBEAT_S: Final = 20
#: what is asked and ordered about the queues of a node
OF_QUEUES: Final = frozenset({"active_queues", "add_consumer", "cancel_consumer"})


class Mailbox:
    """The fleet's ears and voice on the Celery broker; used by one thread."""

    def __init__(
        self,
        app: Celery,
        fleet: Fleet,
        answers: Answers,
        commands: Commands,
        revokes: Revokes,
        *,
        name: str,
    ) -> None:
        """Listen under ``name``, which no other process may have."""
        self._app = app
        self._fleet = fleet
        self._answers = answers
        self._commands = commands
        self._revokes = revokes
        self._name = name
        self._connection: Any = None
        self._mailbox: Any = None
        self._consumer: Any = None

    def listen(self) -> None:
        """Answer what comes within a moment.

        Raises:
            OperationalError: the Celery broker is away.
        """
        try:
            if self._connection is None:
                self._open()
            if self._connection.supports_heartbeats:
                self._connection.heartbeat_check()
            self._connection.drain_events(timeout=LISTEN_S)
        except TimeoutError:
            return
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening; ``listen`` opens again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _open(self) -> None:
        connection = self._app.connection_for_read(heartbeat=HEARTBEAT_S)
        if not connection.supports_exchange_type("fanout"):
            raise OperationalError("this Celery broker has no remote control")
        self._connection = connection
        self._mailbox = self._app.control.mailbox(connection)
        node = self._mailbox.Node(self._name, channel=connection.default_channel)
        self._consumer = node.listen(callback=self._hear)

    def _hear(self, body: Json, message: Any) -> None:
        self._app.clock.adjust(message.headers.get("clock") or 0)
        try:
            method, arguments = str(body["method"]), body.get("arguments") or {}
            if method in REVOKES:
                self._revokes.hear(Revoke.read(method, arguments))
            if method == "heartbeat":
                self._fleet.beat()
            if body.get("reply_to") or self._commands.knows(method):
                self._answer(method, arguments, body)
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.warning("a remote control message makes no sense", exc_info=True)

    def _answer(self, method: str, arguments: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """Answer for the nodes meant; a command is carried out also when no reply is wanted."""
        wanted = _addressed(body)
        if not any(wanted(name) for name in self._fleet.names()):
            return
        say = self._commands.carry_out if self._commands.knows(method) else self._answers.to
        answers = {
            node.name: answer
            for node in self._fleet.nodes(queues=method in OF_QUEUES)
            if wanted(node.name) and (answer := say(node, method, arguments)) is not None
        }
        if not body.get("reply_to"):
            return
        with self._app.amqp.producer_pool.acquire(block=True) as producer:
            for name, answer in answers.items():
                self._mailbox._publish_reply(  # noqa: SLF001  as kombu's own node replies
                    {name: answer},
                    body["reply_to"]["exchange"],
                    body["reply_to"]["routing_key"],
                    body.get("ticket"),
                    producer=producer,
                    serializer=self._mailbox.serializer,
                )


def _addressed(body: Mapping[str, Any]) -> Callable[[str], bool]:
    """Tell which nodes a message is for, as kombu's own node does."""
    destination, pattern, matcher = (body.get(key) for key in ("destination", "pattern", "matcher"))
    matches: Any = match
    if destination:
        return lambda name: name in destination
    if pattern and matcher:
        return lambda name: bool(matches(name, pattern, matcher))
    return lambda _name: True


def quiet_revokes() -> None:
    """Make this process's own revoke handlers leave the result backend alone (celery.md §3.4).

    What they still do is stop Celery's own tasks from being executed here; the fleet's mailbox
    does the rest.
    """

    def revoke(_state: Any, task_id: str | Iterable[str] = (), **_arguments: Any) -> Json:
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        worker_state.revoked.update(ids)
        return {"ok": f"tasks {', '.join(ids)} flagged as revoked"}

    def by_headers(_state: Any, headers: Any = None, **_arguments: Any) -> Json:
        return {"ok": f"headers {headers} flagged as revoked"}

    Panel.data.update(revoke=revoke, terminate=revoke, revoke_by_stamped_headers=by_headers)
