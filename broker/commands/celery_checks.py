"""What ``drawbridge doctor`` asks of Celery itself: its broker, its confirms, its other workers.

Of an edge's machine too, which has no Celery: there it says so, and looks at nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from broker.commands.findings import Finding, Level, ok, problem, skipped
from broker.commands.redis_checks import place
from broker.errors import ConfigurationError
from broker.settings import BridgeSettings

#: how long ordinary workers have to answer, and the Celery broker to be reached
ANSWER_S: Final = 1.5
REACH_S: Final = 4.0
_ORDINARY: Final = "ordinary workers"


def known(settings: BridgeSettings, app_name: str | None) -> tuple[BridgeSettings, Any]:
    """Return where Celery's servers are, and its app; None where there is no Celery.

    Raises:
        ConfigurationError: an app was named, and cannot be imported.
    """
    try:
        from broker.bridge.app import load_app  # noqa: PLC0415  an edge's machine has no Celery
    except ModuleNotFoundError as error:
        if app_name is None:
            return settings, None
        raise ConfigurationError(
            "-A needs Celery; run: pip install 'celery-drawbridge[bridge]'"
        ) from error
    if app_name is None and settings.broker_url is None:
        return settings, None
    app = load_app(app_name, settings)
    if app_name is not None:
        settings = replace(
            settings,
            broker_url=settings.broker_url
            or app.connection_for_write().as_uri(include_password=True),
            result_backend=settings.result_backend or app.conf.result_backend,
        )
    return settings, app


def celery(settings: BridgeSettings, app: Any, *, own: bool, well: bool) -> Iterator[Finding]:
    """Look at what is published and consumed.

    The app is the orchestrator's ``own``, or one like the bridge's; its broker is ``well``, unless
    something was found to be wrong with it.
    """
    if app is None:
        why = (
            "The Celery broker is not known; set DRAWBRIDGE_BROKER_URL, or give --broker-url or -A."
            if settings.broker_url is None
            else "Celery is not installed here; look beside the bridge."
        )
        yield skipped("confirms", why)
        yield skipped(_ORDINARY, why)
        return
    yield _confirms(app, own=own)
    if well:
        yield _ordinary(settings, app)
    else:
        yield skipped(_ORDINARY, "Something is wrong with the Celery broker.")


def _confirms(app: Any, *, own: bool) -> Finding:
    """Look whether a publish returns only when RabbitMQ has the message."""
    from broker.bridge.app import can_confirm, confirms  # noqa: PLC0415

    if not can_confirm(app):
        return ok("confirms", "The Celery broker is no RabbitMQ: a publish returns when it is in.")
    way_out = (
        'Set broker_transport_options = {"confirm_publish": True} in the orchestrator\'s app: '
        "without it send_task returns before RabbitMQ has the task, and a kill of it loses tasks."
    )
    if not own:
        return Finding(
            "confirms",
            Level.NOTICE,
            "What the bridge publishes is confirmed; whether the orchestrator's tasks are, only "
            "its app says.",
            f"Give that app with -A. {way_out}",
        )
    if not confirms(app):
        return problem("confirms", "The app does not wait for RabbitMQ's confirms.", way_out)
    return ok("confirms", "The app waits for RabbitMQ's confirms.")


def _ordinary(settings: BridgeSettings, app: Any) -> Finding:
    """Look whether an ordinary worker takes the tasks of remote ones."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    from broker.bridge.strangers import Strangers  # noqa: PLC0415

    strangers = Strangers(
        app, queues=settings.queues, suffix=settings.node_suffix, answer_s=ANSWER_S
    )
    connection = app.connection_for_write(connect_timeout=REACH_S)
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=REACH_S)
        found = sorted(strangers.found())
    except (
        OperationalError, *connection.connection_errors, *connection.channel_errors
    ) as error:  # fmt: skip
        where = place(settings.broker_url or "")
        return problem(
            _ORDINARY,
            f"{where} cannot be asked who consumes: {error}",
            "Start it, or correct its URL.",
        )
    if found:
        named = ", ".join(f"{node} ({queue})" for node, queue in found)
        return problem(
            _ORDINARY,
            f"They consume bridged queues, and destroy the tasks that they do not know: {named}.",
            "Start them with a -Q that does not name a bridged queue.",
        )
    shown = ", ".join(settings.queues)
    return ok(_ORDINARY, f"None that answers consumes a bridged queue ({shown}).")
