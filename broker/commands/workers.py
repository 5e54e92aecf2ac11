"""The command ``drawbridge workers list``: the fleet for people and scripts, through an edge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from broker.client import Client
from broker.client.shapes import RemoteWorker
from broker.commands.jobs_shown import plain
from broker.settings import EdgeAccess


@click.group()
@click.option("--edge-url", help="The edge: https://host[:port] [DRAWBRIDGE_EDGE_URL].")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with an operator's token [DRAWBRIDGE_EDGE_TOKEN_FILE]; the token itself may stand"
    " in DRAWBRIDGE_EDGE_TOKEN.",
)
@click.pass_context
def workers(context: click.Context, *, edge_url: str | None, token_file: Path | None) -> None:
    """Look at the remote workers through an edge."""
    context.obj = (edge_url, token_file)


@workers.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_obj
def show(access: tuple[str | None, Path | None], *, limit: int, as_json: bool) -> None:
    """List workers, last seen first; with --json one object a line."""
    edge_url, token_file = access
    told = EdgeAccess.from_env(url=edge_url, token_file=token_file)
    with Client(told.url, told.token) as client:
        found = client.workers(limit=limit)
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
    else:
        Console().print(_listing(found))


def _listing(found: Sequence[RemoteWorker]) -> RenderableType:
    table = Table("worker", "state", "last seen", "version", "types", "holds", box=None)
    for one in found:
        state = Text("online", style="green") if one["online"] else Text("offline", style="dim")
        types = one["types"]
        table.add_row(
            Text(plain(one["workerId"])),
            state,
            (one["lastSeenAt"] or "-").partition(".")[0],
            Text(plain(one["version"] or "-")),
            Text(plain("any" if types is None else ", ".join(types))),
            "\n".join(job["id"] for job in one["heldJobs"]) or "-",
        )
    return table if found else Text("No worker was ever seen.")
