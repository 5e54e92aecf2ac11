"""How a Celery app comes to be the bridge's: one of our own, or the orchestrator's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from celery import Celery
from celery.app.utils import find_app

from broker.bridge import builtin_tasks, maintenance
from broker.bridge.consumer import BridgeStep, MessagesStep
from broker.bridge.feed import survive_properties
from broker.bridge.purges import listen_for_purges
from broker.bridge.runtime import Bridge, Settings
from broker.errors import ConfigurationError
from broker.settings import BridgeSettings

#: a backend that is away is waited for by the relay, not inside a call that holds its rows
_BACKEND_RETRY: Final = {"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1}
#: a publish returns when RabbitMQ has the message: links are marked as sent only then
_CONFIRMED: Final = {"confirm_publish": True}
#: job types that every remote worker brings, and no ordinary one
OWN_TYPES: Final = frozenset({"codex_exec", "command"})
#: names that one process warns of
_NAMES_SAID_MAX: Final = 100

logger = logging.getLogger(__name__)


def make_app(settings: BridgeSettings) -> Celery:
    """Make a plain app for orchestrators that send by name.

    Links and chains without a queue of their own go where `NamesAlone` says; whoever routes
    otherwise starts the bridge on the orchestrator's app (``-A``).

    Raises:
        ConfigurationError: nobody said where the Celery broker is.
    """
    if settings.broker_url is None:
        raise ConfigurationError(
            "The Celery broker is not known; set DRAWBRIDGE_BROKER_URL, or give --broker-url or -A"
        )
    app = Celery("drawbridge", broker=settings.broker_url, backend=settings.result_backend)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        redis_socket_timeout=10.0,
        beat_schedule=maintenance.schedule(),
        task_routes=(NamesAlone(settings.queues[0]),),
    )
    return app


class NamesAlone:
    """Routes links and steps of chains where nobody told the orchestrator's routes.

    Our own types can run nowhere but on a bridged queue. Anything else goes to Celery's default
    queue, whose ordinary workers destroy what they do not know; so that is said, once a name.
    """

    def __init__(self, queue: str) -> None:
        """Send our own types to that queue."""
        self._queue = queue
        self._said: set[str] = set()

    def __call__(
        self,
        name: str,
        args: object,  # noqa: ARG002  Celery's signature of a router
        kwargs: object,  # noqa: ARG002
        options: Mapping[str, object],
        task: object = None,  # noqa: ARG002
        **_: object,
    ) -> dict[str, str] | None:
        """Return a route, or None for Celery's own."""
        told = any(options.get(key) for key in ("queue", "exchange", "routing_key"))
        if told or name.startswith(("celery.", maintenance.PREFIX)):
            return None
        if name in OWN_TYPES:
            return {"queue": self._queue}
        if name not in self._said and len(self._said) < _NAMES_SAID_MAX:
            self._said.add(name)
            logger.warning(
                "%r follows a job and names no queue: it goes to Celery's default queue. If that "
                "is wrong, start the bridge with -A proj.celery, whose task_routes then count, or "
                "name the queue in the signature: .set(queue=...)",
                name,
            )
        return None


def load_app(name: str | None, settings: BridgeSettings) -> Any:
    """Find the orchestrator's app by its name, or make a plain one.

    Raises:
        ConfigurationError: it cannot be imported, or nobody said where the Celery broker is.
    """
    if name is None:
        return make_app(settings)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as Celery's own command does
    try:
        return find_app(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"The app {name!r} cannot be imported: {error}") from error


def can_confirm(app: Any) -> bool:
    """Tell whether the app's broker is one that confirms what was published to it: RabbitMQ."""
    return bool(app.connection_for_write().transport.driver_type == "amqp")


def confirms(app: Any) -> bool:
    """Tell whether the app waits until RabbitMQ has what it publishes."""
    return bool((app.conf.broker_transport_options or {}).get("confirm_publish"))


def install(
    app: Any,
    *,
    settings: Settings | None = None,
    queues: tuple[str, ...] | None = None,
) -> Bridge:
    """Make workers of this app bridges; a second call changes nothing.

    Call it in a module of its own, imported by nothing but the bridge: every worker of an app that
    went through here ingests from the bridged queues. Without ``settings`` they come from the
    environment.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """
    found: Bridge | None = getattr(app, "drawbridge", None)
    if found is not None:
        return found
    settings = settings or Settings.from_env()
    if queues is not None:
        settings = replace(settings, bridge=replace(settings.bridge, queues=queues))
    options = dict(app.conf.result_backend_transport_options or {})
    options.setdefault("retry_policy", _BACKEND_RETRY)
    app.conf.result_backend_transport_options = options
    if can_confirm(app):
        told = dict(app.conf.broker_transport_options or {})
        app.conf.broker_transport_options = _CONFIRMED | told
        # After a lost connection Celery lowers the prefetch, and restores it by basic.qos from a
        # task's thread, beside the loop that reads the same connection: they tear frames apart
        app.conf.worker_enable_prefetch_count_reduction = False
        # RabbitMQ closes a channel that leaves a message unacknowledged for half an hour
        app.conf.broker_channel_error_retry = True
        survive_properties()
    bridge = Bridge(app, settings)
    maintenance.register(app, bridge.nudged)
    maintenance.quiet()
    builtin_tasks.adapt(app, settings.bridge.queues)
    listen_for_purges()
    app.drawbridge = bridge
    app.steps["worker"].add(BridgeStep)
    app.steps["consumer"].add(MessagesStep)
    return bridge
