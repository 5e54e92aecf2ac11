"""``drawbridge edge``: serves the HTTP API that remote workers reach."""

from __future__ import annotations

import json
import logging
from ipaddress import ip_address

import click

from broker.errors import ConfigurationError, Unavailable
from edge_api.processes import share_figures
from edge_api.server import EdgeServer
from edge_api.services import Services
from edge_api.settings import RESERVE, THREADS, EdgeSettings
from edge_api.traffic import log_to_stderr

logger = logging.getLogger(__name__)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--threads",
    default=THREADS,
    show_default=True,
    type=click.IntRange(RESERVE + 1, 10_000),
    help=f"Calls served at once; all but {RESERVE} may be waiting claims.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that serve, each with as many threads: about one for each core.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve figures for Prometheus there, to whoever reaches it.",
)
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, help="Address of --metrics-port."
)
@click.option("--json", "as_json", is_flag=True, help="Say for a script where it listens.")
def edge(
    *,
    host: str,
    port: int,
    threads: int,
    processes: int,
    metrics_port: int | None,
    metrics_host: str,
    as_json: bool,
) -> None:
    """Serve the HTTP API that remote workers reach.

    Put a TLS proxy that buffers requests before it when it faces the internet.
    """
    if processes > 1:
        share_figures()
    settings = EdgeSettings.from_env(threads=threads)
    if settings.auth_disabled and not _is_loopback(host):
        raise ConfigurationError(
            f"AUTH_PROVIDER=disabled lets every caller in as an operator, so the edge listens on "
            f"loopback alone with it, not on {host}"
        )

    # What is wrong with the settings is said here, in one line, and not by the process that serves.
    services = Services.connect(settings)

    def listening(url: str) -> None:
        click.echo(json.dumps({"url": url}) if as_json else f"The edge listens on {url}")

    log_to_stderr()
    if settings.auth_disabled:
        logger.warning(
            "AUTH_PROVIDER=disabled: whoever calls from this machine is an operator",
            extra={"action": "start"},
        )
    try:
        services.queue.ready()
    except Unavailable as away:
        logger.warning(
            "the edge serves 503 until this is mended: %s", away.message, extra={"action": "start"}
        )
    finally:
        services.close()
    metrics = None if metrics_port is None else (metrics_host, metrics_port)
    EdgeServer(
        settings, host=host, port=port, listening=listening, metrics=metrics, processes=processes
    ).run()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
