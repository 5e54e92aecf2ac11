"""The command ``drawbridge workers``: the fleet for people and scripts, through an edge."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from broker.client.shapes import RemoteWorker, Standing
from broker.commands.asking import edge_client, edge_options
from broker.commands.jobs_shown import plain, screen


@click.group()
@edge_options("an operator's")
def workers() -> None:
    """Look at the remote workers through an edge, and steer them."""


@workers.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def show(*, limit: int, as_json: bool) -> None:
    """List workers, last seen first; with --json one object a line."""
    found = edge_client().workers(limit=limit)
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
    else:
        screen().print(_listing(found))


@workers.command(short_help="Let a worker finish what it runs and claim no more.")
@click.argument("name")
def drain(*, name: str) -> None:
    """Let a worker finish what it runs and claim no more; a repeat changes nothing."""
    _say(edge_client().steer(name, "drain"))


@workers.command(short_help="Let a drained worker claim again.")
@click.argument("name")
def resume(*, name: str) -> None:
    """Let a drained worker claim again; a repeat changes nothing."""
    _say(edge_client().steer(name, "resume"))


@workers.command(short_help="Let a worker claim nothing more from one queue.")
@click.argument("name")
@click.argument("queue")
def pause(*, name: str, queue: str) -> None:
    """Let a worker claim nothing more from one queue; a repeat changes nothing."""
    _say(edge_client().steer(name, "pause", queue=queue))


@workers.command(short_help="Let a worker claim from a queue again.")
@click.argument("name")
@click.argument("queue")
def unpause(*, name: str, queue: str) -> None:
    """Let a worker claim from a queue again; a repeat changes nothing."""
    _say(edge_client().steer(name, "unpause", queue=queue))


@workers.command(short_help="Say how many jobs a worker runs at once.")
@click.argument("name")
@click.argument("slots", type=click.IntRange(0, 10_000), required=False)
def concurrency(*, name: str, slots: int | None) -> None:
    """Say how many jobs a worker runs at once; without SLOTS: its owner's --concurrency again."""
    _say(edge_client().steer(name, "concurrency", concurrency=slots))


def _say(standing: Standing) -> None:
    slots = standing["concurrency"]
    # an older edge does not say it
    paused = standing.get("pausedQueues")
    click.echo(
        f"{plain(standing['workerId'])}  {'drains' if standing['drain'] else 'claims'}  "
        f"{'up to its own --concurrency at once' if slots is None else f'at most {slots} at once'}"
        + (f"  nothing from {plain(', '.join(paused))}" if paused else "")
    )


def _listing(found: Sequence[RemoteWorker]) -> RenderableType:
    # an id is there to be copied: a narrow terminal shortens the others
    holds = Column("holds", no_wrap=True)
    table = Table("worker", "state", "last seen", "version", "types", holds, box=None)
    for one in found:
        types = one["types"]
        table.add_row(
            Text(plain(one["workerId"])),
            _state(one),
            (one["lastSeenAt"] or "-").partition(".")[0],
            Text(plain(one["version"] or "-")),
            Text(plain("any" if types is None else ", ".join(types))),
            "\n".join(job["id"] for job in one["heldJobs"]) or "-",
        )
    return table if found else Text("No worker was ever seen.")


def _state(one: RemoteWorker) -> Text:
    if not one["online"]:
        return Text("offline", style="dim")
    # an older edge does not say these
    if one.get("draining"):
        return Text("draining", style="yellow")
    paused = one.get("pausedQueues")
    if paused:
        return Text(f"nothing from {plain(', '.join(paused))}", style="yellow")
    return Text("online", style="green")
