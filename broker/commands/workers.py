"""The command ``drawbridge workers``: the fleet for people and scripts, through an edge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from broker.client import Client
from broker.client.shapes import RemoteWorker, Standing
from broker.commands.jobs_shown import plain, screen
from broker.settings import EdgeAccess

#: URL and token file as the command line gave them
Access = tuple[str | None, Path | None]


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
    """Look at the remote workers through an edge, and steer them."""
    context.obj = (edge_url, token_file)


@workers.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_obj
def show(access: Access, *, limit: int, as_json: bool) -> None:
    """List workers, last seen first; with --json one object a line."""
    with _client(access) as client:
        found = client.workers(limit=limit)
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
    else:
        screen().print(_listing(found))


@workers.command()
@click.argument("name")
@click.pass_obj
def drain(access: Access, *, name: str) -> None:
    """Let a worker finish what it runs and claim no more; a repeat changes nothing."""
    with _client(access) as client:
        _say(client.steer(name, "drain"))


@workers.command()
@click.argument("name")
@click.pass_obj
def resume(access: Access, *, name: str) -> None:
    """Let a drained worker claim again; a repeat changes nothing."""
    with _client(access) as client:
        _say(client.steer(name, "resume"))


@workers.command()
@click.argument("name")
@click.argument("slots", type=click.IntRange(0, 10_000), required=False)
@click.pass_obj
def concurrency(access: Access, *, name: str, slots: int | None) -> None:
    """Say how many jobs a worker runs at once, up to what its owner allows; without: that."""
    with _client(access) as client:
        _say(client.steer(name, "concurrency", concurrency=slots))


def _client(access: Access) -> Client:
    edge_url, token_file = access
    told = EdgeAccess.from_env(url=edge_url, token_file=token_file)
    return Client(told.url, told.token)


def _say(standing: Standing) -> None:
    slots = standing["concurrency"]
    click.echo(
        f"{plain(standing['workerId'])}  {'drains' if standing['drain'] else 'claims'}  "
        f"{'slots as its owner says' if slots is None else f'slots at most {slots}'}"
    )


def _listing(found: Sequence[RemoteWorker]) -> RenderableType:
    # an id is there to be copied: a narrow terminal shortens the others
    holds = Column("holds", no_wrap=True)
    table = Table("worker", "state", "last seen", "version", "types", holds, box=None)
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
