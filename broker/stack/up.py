"""`drawbridge up`: the only place that knows how a stack is asked for and told of."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import click

from broker.errors import DrawbridgeError
from broker.settings import Environment
from broker.stack.folder import FolderInUse
from broker.stack.processes import KeepsDying, StartFailed, Stopped
from broker.stack.programs import command
from broker.stack.servers import NoServer
from broker.stack.stack import Options, Stack


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port of the edge; default: the last one, if free.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where ledger, artifacts, tokens and logs are kept; default: DRAWBRIDGE_DATA_DIR, "
    "else ~/.local/share/drawbridge.",
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    help="Remote workers beside it; default: one, if a logged-in Codex CLI is there.",
)
@click.option("--queue", default="remote", show_default=True, help="The bridged Celery queue.")
@click.option("--broker-url", help="A Celery broker instead of the embedded one.")
@click.option("--result-backend", help="A Celery result backend instead of the embedded one.")
@click.option("--database-url", help="A ledger instead of SQLite in the data folder.")
@click.option("--reservations-url", help="A Redis for reservations instead of the embedded one.")
@click.option("--flower/--no-flower", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON when all is ready.")
@click.argument("worker_arguments", nargs=-1, type=click.UNPROCESSED)
def up(as_json: bool, data_dir: Path | None, workers: int | None, **wanted: Any) -> None:  # noqa: FBT001
    """Run the whole stack on this machine until Ctrl-C or SIGTERM.

    What stands after `--` is handed to every `drawbridge-worker run`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("broker.stack").setLevel(logging.INFO)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if workers is None:
        workers = _worker_by_default(wanted["worker_arguments"])
    options = Options(
        data_dir=data_dir or Environment().data_dir, environ=dict(os.environ), workers=workers,
        **wanted,
    )  # fmt: skip
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


def _worker_by_default(arguments: tuple[str, ...]) -> int:
    """Return 1 when a worker could work here; a stack without one is still of use."""
    if arguments:
        return 1
    codex = shutil.which("codex")
    if codex is None:
        lacks = "no codex on PATH: npm install -g @openai/codex, then codex login"
    elif subprocess.run([codex, "login", "status"], capture_output=True, check=False).returncode:
        lacks = "codex is not logged in: codex login"
    else:
        return 1
    click.echo(
        f"without a worker ({lacks}; `drawbridge up -- --codex PATH` names another)", err=True
    )
    return 0


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
    click.echo(f"{'jobs':>14}  DRAWBRIDGE_EDGE_URL={told['edgeUrl']} \\")
    click.echo(f"{'':>14}  DRAWBRIDGE_EDGE_TOKEN_FILE={stack.operator_token_file} \\")
    click.echo(f"{'':>14}  {command('drawbridge')} jobs list")
    click.echo(f"{'more tokens':>14}  DRAWBRIDGE_DATABASE_URL={told['databaseUrl']} \\")
    click.echo(f"{'':>14}  DRAWBRIDGE_RESERVATIONS_URL={told['reservationsUrl']} \\")
    click.echo(f"{'':>14}  {command('drawbridge')} tokens create --kind worker --worker-id NAME \\")
    click.echo(f"{'':>14}      --token-file NAME.token")
    click.echo(
        f"{'a worker more':>14}  {command('drawbridge-worker')} run --url {told['edgeUrl']} \\"
    )
    click.echo(f"{'':>14}      --token-file NAME.token --worker-id NAME")
    click.echo("ready; Ctrl-C stops it")
