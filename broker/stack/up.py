"""`drawbridge up`: the only place that knows how a stack is asked for and told of."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from broker.errors import DrawbridgeError
from broker.settings import Environment
from broker.stack.folder import FolderInUse
from broker.stack.processes import KeepsDying, StartFailed, Stopped
from broker.stack.servers import NoServer
from broker.stack.stack import Options, Stack


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the edge; default: a free one."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where ledger, artifacts, tokens and logs are kept; default: DRAWBRIDGE_DATA_DIR, "
    "else ~/.local/share/drawbridge.",
)
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--queue", default="remote", show_default=True, help="The bridged Celery queue.")
@click.option("--broker-url", help="A Celery broker instead of the embedded one.")
@click.option("--result-backend", help="A Celery result backend instead of the embedded one.")
@click.option("--database-url", help="A ledger instead of SQLite in the data folder.")
@click.option("--reservations-url", help="A Redis for reservations instead of the embedded one.")
@click.option("--flower/--no-flower", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON when all is ready.")
@click.argument("worker_arguments", nargs=-1, type=click.UNPROCESSED)
def up(as_json: bool, data_dir: Path | None, **wanted: Any) -> None:  # noqa: FBT001
    """Run the whole stack on this machine until Ctrl-C or SIGTERM.

    What stands after `--` is handed to every `drawbridge-worker run`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("broker.stack").setLevel(logging.INFO)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    options = Options(
        data_dir=data_dir or Environment().data_dir, environ=dict(os.environ), **wanted
    )
    stack = Stack(options, stopping)
    try:
        stack.start(lambda text: click.echo(text, err=True))
        report(stack, as_json=as_json)
        stack.run()
    except Stopped:
        return
    except (DrawbridgeError, FolderInUse, KeepsDying, NoServer, StartFailed) as problem:
        raise click.ClickException(str(problem)) from problem
    finally:
        stack.stop()


def report(stack: Stack, *, as_json: bool) -> None:
    """Print where everything is: for a program in one line, for a person in a few."""
    told = stack.report()
    if as_json:
        click.echo(json.dumps(told))
        return
    for label, name in (
        ("edge", "edgeUrl"),
        ("Flower", "flowerUrl"),
        ("broker", "brokerUrl"),
        ("result backend", "resultBackend"),
        ("queue", "queue"),
        ("data", "dataDir"),
    ):
        click.echo(f"{label:>14}  {told[name] or 'off'}")
    click.echo(f"{'operator token':>14}  in {stack.operator_token_file}")
    click.echo("ready; Ctrl-C stops it")
