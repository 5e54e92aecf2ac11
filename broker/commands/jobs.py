"""The commands ``drawbridge jobs …``: jobs for people and scripts, through an edge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from broker.client import ENDED, Client, Event
from broker.commands.asking import edge_client, edge_options
from broker.commands.jobs_shown import (
    detail,
    event_line,
    listing,
    reasons,
    screen,
    standing,
    summary,
)
from broker.states import Status

#: exit code of `watch` and `submit --watch` for a job that ended otherwise than well
NOT_SUCCEEDED: Final = 3
#: exit code of Ctrl-C while a job is watched, as shells have it
INTERRUPTED: Final = 130
#: how often a watched job is looked at on a terminal
_LOOK_S: Final = 3
#: how long a task just sent may stay unknown to the edge
_UNKNOWN_S: Final = 30.0

_JSON = click.option("--json", "as_json", is_flag=True, help="Say it for a script.")


@click.group()
@edge_options("an operator's or producer's")
def jobs() -> None:
    """Submit, look at, follow and cancel jobs through an edge.

    Exit codes: 0 done, 1 refused, 2 usage, 3 a watched job did not succeed, 130 Ctrl-C while
    watching, which leaves the job alone.
    """


@jobs.command()
@click.argument("type_", metavar="TYPE")
@click.option("--payload", default="{}", help="JSON object, @FILE, or - for standard input.")
@click.option(
    "--set",
    "fields",
    multiple=True,
    metavar="KEY=VALUE",
    help="One key of the payload; a value that is JSON counts as such. Repeatable.",
)
@click.option("--queue", help="Which queue; the edge's default without it.")
@click.option("--priority", type=int, default=0, help="Higher goes first.")
@click.option("--max-attempts", type=click.IntRange(1, 100))
@click.option("--idempotency-key", help="A repeat with the same key gives the same job.")
@click.option("--watch", "then_watch", is_flag=True, help="Follow it to its end.")
@_JSON
def submit(
    *,
    type_: str,
    payload: str,
    fields: tuple[str, ...],
    queue: str | None,
    priority: int,
    max_attempts: int | None,
    idempotency_key: str | None,
    then_watch: bool,
    as_json: bool,
) -> None:
    """Create a job of TYPE and say its id.

    \b
    drawbridge jobs submit codex_exec --set repository=org/name \\
        --set instruction="Fix the typo in the README" --watch
    """  # noqa: D301 - \b is click's
    body = _payload(payload) | dict(_field(one) for one in fields)
    client = edge_client()
    made = client.submit(
        type_,
        body,
        queue=queue,
        priority=priority,
        max_attempts=max_attempts,
        idempotency_key=idempotency_key,
    )
    if then_watch:
        _watch(client, made["id"], as_json=as_json)
    else:
        click.echo(json.dumps(made) if as_json else made["id"])


@jobs.command("list")
@click.option("--status", type=click.Choice([str(one) for one in Status]))
@click.option("--type", "type_", help="Jobs of this type.")
@click.option("--queue", help="Jobs of this queue.")
@click.option("--worker", help="Jobs that this worker has or had last.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@_JSON
def show_many(*, as_json: bool, limit: int, **which: str | None) -> None:
    """List jobs, newest first; with --json one object a line."""
    found = edge_client().jobs(limit=limit, **which)
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
    else:
        screen().print(listing(list(found)))


@jobs.command()
@click.argument("job_id", metavar="ID")
@_JSON
def show(*, job_id: str, as_json: bool) -> None:
    """Show a job with its attempts and files."""
    client = edge_client()
    job, attempts, files = client.job(job_id), client.attempts(job_id), client.artifacts(job_id)
    if as_json:
        click.echo(json.dumps({**job, "attempts": attempts, "artifacts": files}))
    else:
        screen().print(detail(job, attempts, files))


@jobs.command(short_help="Tell what keeps a job from running.")
@click.argument("job_id", metavar="ID")
@_JSON
def why(*, job_id: str, as_json: bool) -> None:
    """Tell what about a job, and for each live worker which rule, keeps it from running."""
    found = edge_client().why(job_id)
    click.echo(json.dumps(found) if as_json else "\n".join(reasons(found)))


@jobs.command(short_help="Follow a job to its end, and exit 3 unless it succeeded.")
@click.argument("job_id", metavar="ID")
@_JSON
def watch(*, job_id: str, as_json: bool) -> None:
    """Follow a job to its end: what happens, then how it ended; exits 3 unless it succeeded.

    A task just sent may take a moment to become a job: it is looked for for half a minute.
    """
    _watch(edge_client(), job_id, as_json=as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@_JSON
def logs(*, job_id: str, follow: bool, as_json: bool) -> None:
    """Print a job's log of events; with --json one object a line."""
    client = edge_client()
    for event in client.follow(job_id) if follow else _so_far(client, job_id):
        click.echo(json.dumps(event) if as_json else event_line(event))


@jobs.command(short_help="Download a job's files, and print where they are.")
@click.argument("job_id", metavar="ID")
@click.option("--name", "names", multiple=True, help="Only files of this name; repeatable.")
@click.option(
    "--to", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path(),
    help="The folder to write into; made when missing [the current one].",
)  # fmt: skip
def download(*, job_id: str, names: tuple[str, ...], folder: Path) -> None:
    """Download a job's files, the newest of each name, and print where they are."""
    client = edge_client()
    newest = {one["name"]: one for one in sorted(client.artifacts(job_id), key=_age)}
    missing = sorted(set(names) - set(newest))
    if missing:
        raise click.ClickException(f"The job has no file {', '.join(missing)}")
    for name, artifact in newest.items():
        if not names or name in names:
            # a name is a label, and never a path: what it says of folders is left out
            target = folder / name.replace("\\", "/").rpartition("/")[2]
            folder.mkdir(parents=True, exist_ok=True)
            click.echo(client.download(artifact, target))


@jobs.command(short_help="Cancel jobs, and ask the workers of running ones to stop.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", help="Kept with the job.")
@_JSON
def cancel(*, ids: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Cancel queued jobs, and ask the workers of running ones to stop."""
    client = edge_client()
    for job_id in ids:
        job = client.cancel(job_id, reason=reason)
        click.echo(json.dumps(job) if as_json else summary(job))


@jobs.command(short_help="Bring back failed and dead-lettered jobs.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what would be brought back.")
@_JSON
def redrive(*, ids: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Bring back failed and dead-lettered jobs, with fresh attempts; needs an operator's token.

    By filter, and beside the ledger: `drawbridge redrive`.
    """
    items = edge_client().redrive(ids, dry_run=dry_run)
    for item in items:
        click.echo(json.dumps(item) if as_json else f"{item['id']}  {item['outcome']}")
    if any(item["outcome"] == "not_found" for item in items):
        raise click.exceptions.Exit(1)


def _so_far(client: Client, job_id: str) -> list[Event]:
    found: list[Event] = []
    while page := client.events(job_id, after=found[-1]["seq"] if found else 0, limit=500):
        found += page
    return found


def _watch(client: Client, job_id: str, *, as_json: bool) -> None:
    try:
        _follow(client, job_id, as_json=as_json)
    except KeyboardInterrupt:
        again = f"drawbridge jobs watch {job_id}"
        click.echo(f"\nThe job is left alone; to go on: {again}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    job = client.job(job_id)
    click.echo(json.dumps(job) if as_json else summary(job))
    if job["status"] in ENDED - {"succeeded"}:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def _follow(client: Client, job_id: str, *, as_json: bool) -> None:
    """Print what is logged; on a terminal, below it, how far the job is."""
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        for event in client.follow(job_id, unknown_s=_UNKNOWN_S):
            click.echo(json.dumps(event) if as_json else event_line(event))
        return
    with console.status(Text(f"looking for job {job_id}")) as status:
        followed = client.follow(
            job_id, unknown_s=_UNKNOWN_S, wait_s=_LOOK_S,
            seen=lambda job: status.update(Text(standing(job))),
        )  # fmt: skip
        for event in followed:
            status.stop()  # or the line would go on where it stands
            click.echo(event_line(event))
            status.start()


def _payload(text: str) -> dict[str, Any]:
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"no JSON: {error}", param_hint="--payload") from None
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--payload")
    return value


def _field(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _age(artifact: Any) -> tuple[int, str]:
    return artifact["fence"], artifact["createdAt"]
