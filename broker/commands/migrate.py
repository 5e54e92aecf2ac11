"""The command ``drawbridge migrate``."""

from __future__ import annotations

import json

import click

from broker.commands.opening import said_where
from broker.ledger.engine import Ledger
from broker.ledger.migrate import upgrade
from broker.ledger.revisions import revisions
from broker.settings import StoreSettings


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 unless all is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_context
def migrate(ctx: click.Context, *, check: bool, as_json: bool) -> None:
    """Bring the ledger to this version's tables.

    Creates what is missing; a second run changes nothing.
    """
    url = StoreSettings.from_env().database_url
    with said_where(url):
        if check:
            _check(ctx, url, as_json=as_json)
            return
        done = upgrade(url)
    if as_json:
        said = {"from": done.before, "to": done.after, "changed": done.before != done.after}
        click.echo(json.dumps(said))
    elif done.before == done.after:
        click.echo(f"The ledger is at revision {done.after} already.")
    elif done.before is None:
        click.echo(f"The ledger is made, at revision {done.after}.")
    else:
        click.echo(f"The ledger went from revision {done.before} to {done.after}.")


def _check(ctx: click.Context, url: str, *, as_json: bool) -> None:
    ledger = Ledger(url)
    try:
        found = revisions(ledger)
    finally:
        ledger.close()
    if as_json:
        said = {"current": found.current, "head": found.head, "atHead": found.at_head}
        click.echo(json.dumps(said))
    elif found.at_head:
        click.echo(f"The ledger is at revision {found.head}, as this version needs.")
    else:
        click.echo(
            f"The ledger is at revision {found.current}, this version needs {found.head}; "
            "run `drawbridge migrate`.",
        )
    ctx.exit(0 if found.at_head else 1)
