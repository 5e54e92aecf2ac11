"""The command ``drawbridge redrive``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

import click

from broker.clock import Clock
from broker.commands.opening import ACTOR, opened, source
from broker.commands.tokens import span
from broker.queue import JobQueue
from broker.redrive_shapes import Redrive, RedriveFilter, RedriveItem, Redriven
from broker.reservations.store import Reservations
from broker.settings import QueueSettings, StoreSettings
from broker.states import REDRIVABLE, Status

#: what a filter takes at once unless asked otherwise
LIMIT: Final = 1000


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--status", type=click.Choice(sorted(REDRIVABLE)), help="Default: dead_letter.")
@click.option("--type", "type_", help="Jobs of this type.")
@click.option("--queue", help="Jobs of this queue.")
@click.option("--since", metavar="TIME", help="Jobs that ended within, e.g. 12h, or since a date.")
@click.option("--limit", type=click.IntRange(1, 10_000), help=f"At most; {LIMIT} by default.")
@click.option("--max-rate", type=click.FloatRange(0.01, 10_000), help="Jobs a second made ready.")
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what would be brought back.")
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_context
def redrive(
    ctx: click.Context,
    *,
    ids: tuple[str, ...],
    status: str | None,
    type_: str | None,
    queue: str | None,
    since: str | None,
    limit: int | None,
    max_rate: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring back jobs that failed for good, with fresh attempts.

    Names them by id, or by what they are; a second time finds nothing more to bring back. Exits
    with 1 when an id is no job's.
    """
    given = [one for one in (status, type_, queue, since, limit) if one is not None]
    if bool(ids) == bool(given):
        raise click.UsageError(
            "Name jobs by id, or say which by --status, --type, --queue, --since or --limit."
        )
    wanted = None
    if not ids:
        wanted = RedriveFilter(
            statuses=REDRIVABLE[status or Status.DEAD_LETTER],
            type=type_,
            queue=queue,
            since=None if since is None else moment(since, datetime.now(UTC)),
            limit=limit or LIMIT,
        )
    asked = Redrive(
        ids=ids, filter=wanted, max_rate=max_rate, dry_run=dry_run,
        requested_by=ACTOR, source=source(),
    )  # fmt: skip
    done = _redrive(asked)
    click.echo(json.dumps(_for_scripts(done)) if as_json else _for_people(done, dry_run=dry_run))
    ctx.exit(1 if any(item.outcome == "not_found" for item in done.items) else 0)


def moment(text: str, now: datetime) -> datetime:
    """Read a moment: an ISO date or time (without a zone UTC), or how long ago it was."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return now - span(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _redrive(asked: Redrive) -> Redriven:
    settings = StoreSettings.from_env()
    reservations = Reservations.connect(settings.reservations_url)
    try:
        with opened(settings) as ledger:
            clock = Clock(reservations.clock_ms, else_ms=ledger.clock_ms)
            queue = JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
            return queue.redrive(asked)
    finally:
        reservations.close()


def _for_scripts(done: Redriven) -> dict[str, object]:
    """Name the fields as the HTTP API does."""
    return {
        "matched": done.matched,
        "redriven": done.redriven,
        "more": done.more,
        "items": [
            {
                "id": item.id,
                "outcome": item.outcome,
                "status": item.status,
                "nextAttemptAt": _moment(item),
            }
            for item in done.items
        ],
    }


def _for_people(done: Redriven, *, dry_run: bool) -> str:
    lines = [f"{item.id}  {item.outcome}  {_moment(item) or ''}".rstrip() for item in done.items]
    if dry_run:
        lines.append(f"{done.matched} of {len(done.items)} would be brought back.")
    else:
        lines.append(f"{done.redriven} of {len(done.items)} are queued again.")
    if done.more:
        lines.append("There are more; run it again, or raise --limit.")
    return "\n".join(lines)


def _moment(item: RedriveItem) -> str | None:
    if item.next_attempt_at is None:
        return None
    return item.next_attempt_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
