"""The commands ``drawbridge bridge`` and ``drawbridge beat``."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from typing import Any

import click
from prometheus_client import REGISTRY

from broker import figures
from broker.bridge import maintenance
from broker.bridge.app import install, load_app, make_app
from broker.bridge.runtime import Settings
from broker.errors import ConfigurationError
from broker.ledger.engine import Ledger
from broker.ledger.revisions import check
from broker.settings import BridgeSettings

logger = logging.getLogger(__name__)

_LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)


@click.command()
@click.option("-A", "--app", "app_name", help="The orchestrator's app, e.g. proj.celery.")
@click.option("--queue", "queues", multiple=True, help="A queue to bridge; may be repeated.")
@click.option("--broker-url", help="The Celery broker, unless an app brings it.")
@click.option("--result-backend", help="Celery's result backend, unless an app brings it.")
@click.option("--declare-queues", is_flag=True, help="Declare the queues on the broker.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve figures for Prometheus there, to whoever reaches it.",
)
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, help="Address of --metrics-port."
)
@click.option("-n", "--name", default="bridge@%h", show_default=True, help="Name of the node.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("-l", "--loglevel", type=_LEVELS, default="INFO", show_default=True)
@click.pass_context
def bridge(
    ctx: click.Context,
    *,
    app_name: str | None,
    queues: tuple[str, ...],
    broker_url: str | None,
    result_backend: str | None,
    declare_queues: bool,
    metrics_port: int | None,
    metrics_host: str,
    name: str,
    concurrency: int,
    loglevel: str,
) -> None:
    """Run the bridge: a Celery worker that ingests, and tells Celery what became."""
    told = _told(queues, broker_url, result_backend, declare_queues=declare_queues)
    settings = replace(Settings.from_env(), bridge=told)
    _check_tables(settings)
    app = load_app(app_name, told)
    _check_results(app)
    installed = install(app, settings=settings)
    if metrics_port is not None:
        REGISTRY.register(installed.gauges)
        figures.serve(metrics_host, metrics_port)
    worker = app.Worker(
        hostname=name.replace("%h", socket.gethostname()),
        pool_cls="threads",  # a fork would copy the locks our threads hold
        concurrency=concurrency,
        queues=[maintenance.QUEUE],
        loglevel=loglevel.upper(),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    ctx.exit(worker.exitcode or 0)


@click.command()
@click.option("--broker-url", help="The Celery broker.")
@click.option("-l", "--loglevel", type=_LEVELS, default="INFO", show_default=True)
def beat(*, broker_url: str | None, loglevel: str) -> None:
    """Run Celery beat, which nudges the bridge; it is the only trigger of nothing."""
    told = _told((), broker_url, None)
    if told.broker_url is None:
        raise ConfigurationError(
            "The Celery broker is not known; set DRAWBRIDGE_BROKER_URL, or give --broker-url"
        )
    app = make_app(told)
    maintenance.quiet()
    # in memory: every interval may begin anew, and no file can be held by another beat
    app.Beat(scheduler="celery.beat:Scheduler", loglevel=loglevel.upper(), quiet=True).run()


def _told(
    queues: tuple[str, ...],
    broker_url: str | None,
    result_backend: str | None,
    *,
    declare_queues: bool = False,
) -> BridgeSettings:
    """Return what the environment says, corrected by the command line."""
    found = BridgeSettings.from_env()
    return replace(
        found,
        queues=queues or found.queues,
        broker_url=broker_url or found.broker_url,
        result_backend=result_backend or found.result_backend,
        declare_queues=declare_queues or found.declare_queues,
    )


def _check_tables(settings: Settings) -> None:
    stores = settings.stores
    ledger = Ledger(stores.database_url, synchronous=stores.sqlite_synchronous)
    try:
        if not check(ledger):
            raise ConfigurationError("The ledger is not at this version; run drawbridge migrate")
    finally:
        ledger.close()


def _check_results(app: Any) -> None:
    """Refuse to lose results in silence; ``disabled://`` says that nobody waits for any."""
    if not app.conf.result_backend:
        raise ConfigurationError(
            "The bridge has no result backend, and every AsyncResult.get() would wait for ever; "
            "give --result-backend or DRAWBRIDGE_RESULT_BACKEND (disabled:// if nobody waits)",
        )
