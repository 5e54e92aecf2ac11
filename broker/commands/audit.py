"""The commands ``drawbridge audit list`` and ``drawbridge audit verify``."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import click

from broker.commands.opening import opened
from broker.commands.redrive import moment
from broker.ledger import audit as records
from broker.ledger.audit import Entry
from broker.settings import StoreSettings

_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


def noted(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, str] | None:
    """Read a head as an earlier verify said it."""
    if text is None:
        return None
    match = _HEAD.fullmatch(text)
    if match is None:
        raise click.BadParameter("not a head such as `drawbridge audit verify` says")
    return int(match[1]), match[2]


@click.group()
def audit() -> None:
    """List and verify what was done, by whom, and who was refused."""


@audit.command("list")
@click.option("--action", help="Such as token.create; with a dot at the end all below: token.")
@click.option("--since", metavar="TIME", help="Within, e.g. 12h, or since a date.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def show(*, action: str | None, since: str | None, limit: int, as_json: bool) -> None:
    """List records, newest first."""
    after = None if since is None else moment(since, datetime.now(UTC))
    with opened(StoreSettings.from_env()) as ledger, ledger.read() as conn:
        found = records.newest(conn, action=action, since=after, limit=limit)
    if as_json:
        click.echo(json.dumps({"items": [_for_scripts(one) for one in found]}))
        return
    for one in found:
        act = one.act
        words = [one.seq, one.at[:19], act.action, f"by {act.actor}", f"from {act.source or '-'}"]
        words += [act.object or "-", json.dumps(act.detail)]
        # Some of it a stranger may have typed; the terminal is the reader's.
        click.echo(re.sub(r"[^ -~]", "?", "  ".join(map(str, words))))


@audit.command(short_help="Look whether a record was changed, removed or put elsewhere.")
@click.option(
    "--expect", metavar="HEAD", callback=noted, help="A head noted earlier: is it in the chain?"
)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_context
def verify(ctx: click.Context, *, expect: tuple[int, str] | None, as_json: bool) -> None:
    """Look whether a record was changed, removed or put elsewhere; exits with 1 when one was.

    Note the head that it says where nobody who can write the ledger can write: with --expect it
    shows later that not the whole chain was made anew.
    """
    with opened(StoreSettings.from_env()) as ledger, ledger.read() as conn:
        found = records.verify(conn, expect=expect)
    if as_json:
        said = {"ok": not found.faults, "records": found.records, "head": found.head}
        click.echo(json.dumps({**said, "faults": found.faults}))
    elif found.faults:
        click.echo("\n".join(f"PROBLEM  {fault}" for fault in found.faults))
    else:
        click.echo(f"All {found.records} records are as they were written; head {found.head}")
    ctx.exit(1 if found.faults else 0)


def _for_scripts(one: Entry) -> dict[str, Any]:
    return {
        "seq": one.seq,
        "at": one.at.replace("+00:00", "Z"),
        "action": one.act.action,
        "actor": one.act.actor,
        "source": one.act.source,
        "object": one.act.object,
        "detail": one.act.detail,
    }
