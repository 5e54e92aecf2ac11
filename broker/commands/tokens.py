"""The commands ``drawbridge tokens create``, ``list`` and ``revoke``."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from broker.commands.opening import opened
from broker.errors import ConfigurationError
from broker.ledger.credentials import Credentials, state
from broker.policy import Policy
from broker.records import Credential
from broker.reservations.store import Reservations
from broker.settings import StoreSettings
from broker.tokens import KINDS

_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_KIND: Final = click.Choice(sorted(KINDS.values()))


def span(text: str) -> timedelta:
    """Read a length of time such as ``90d``, ``12h``, ``30m``, ``45s``; ``never`` is zero."""
    if text == "never":
        return timedelta(0)
    match = _SPAN.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time like 90d, 12h, 30m, or never")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.group()
def tokens() -> None:
    """Create, list and revoke tokens."""


@tokens.command()
@click.option("--kind", required=True, type=_KIND)
@click.option("--worker-id", help="The worker's name, for kind worker.")
@click.option("--description", help="For whoever reads the list.")
@click.option(
    "--allow-repository",
    "repositories",
    multiple=True,
    help="Owner/Name, URL, or a pattern such as Owner/*; repeatable. Without it: any.",
)
@click.option("--allow-type", "types", multiple=True, help="Job type; repeatable. Without it: any.")
@click.option("--capability", "capabilities", multiple=True, help="What it can do; repeatable.")
@click.option("--queue", "queues", multiple=True, help="Queue; repeatable. Without it: any.")
@click.option("--max-concurrency", type=click.IntRange(min=1), help="Jobs it may hold at once.")
@click.option("--expires-in", type=span, default="90d", show_default=True, help="Or: never.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token there, for the owner's eyes only, instead of showing it.",
)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def create(
    *,
    kind: str,
    worker_id: str | None,
    description: str | None,
    repositories: tuple[str, ...],
    types: tuple[str, ...],
    capabilities: tuple[str, ...],
    queues: tuple[str, ...],
    max_concurrency: int | None,
    expires_in: timedelta,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Create a token and show it, this once.

    Standard output holds the token alone; what it is for is said on standard error.
    """
    now = datetime.now(UTC)
    policy = Policy(
        types=types or None,
        repositories=repositories or None,
        capabilities=capabilities or None,
        queues=queues or None,
        max_concurrency=max_concurrency,
    )
    with opened(StoreSettings.from_env()) as ledger, _delivery(token_file) as deliver:
        credential, text = Credentials(ledger).create(
            kind,
            worker_id=worker_id,
            description=description,
            policy=policy,
            expires_at=now + expires_in if expires_in else None,
            created_by="cli",
            now=now,
        )
        deliver(text)
    if as_json:
        shown = {} if token_file else {"token": text}
        click.echo(json.dumps({**shown, **_for_scripts(credential, now)}))
        return
    if token_file is None:
        click.echo(text)
    owner = f"{kind} {worker_id}" if worker_id else kind
    place = f"in {token_file}" if token_file else "shown above, and never again"
    until = _minute(credential.expires_at) or "it is revoked"
    click.echo(f"Token {credential.id} for {owner}, valid until {until}: {place}.", err=True)


@tokens.command("list")
@click.option("--kind", type=_KIND)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def show(*, kind: str | None, limit: int, as_json: bool) -> None:
    """List tokens, newest first."""
    now = datetime.now(UTC)
    with opened(StoreSettings.from_env()) as ledger:
        found = Credentials(ledger).list(kind=kind, limit=limit)
    if as_json:
        click.echo(json.dumps({"items": [_for_scripts(one, now) for one in found]}))
        return
    rows = [("ID", "KIND", "WORKER", "STATE", "EXPIRES", "LAST USED", "DESCRIPTION")]
    rows += [
        (
            one.id,
            one.kind,
            one.worker_id or "-",
            state(one, now),
            _minute(one.expires_at) or "never",
            _minute(one.last_used_at) or "never",
            # A description comes from anyone who may create tokens, the terminal is the reader's.
            re.sub(r"[^ -~]", "?", one.description or ""),
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@tokens.command()
@click.argument("token_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def revoke(*, token_id: str, as_json: bool) -> None:
    """End a token for good; a second time changes nothing."""
    now = datetime.now(UTC)
    settings = StoreSettings.from_env()
    reservations = Reservations.connect(settings.reservations_url)
    try:
        with opened(settings) as ledger:
            credential = Credentials(ledger, on_revoke=reservations.revoke).revoke(
                token_id, now=now
            )
    finally:
        reservations.close()
    if as_json:
        click.echo(json.dumps(_for_scripts(credential, now)))
    else:
        click.echo(f"Token {credential.id} is revoked; within 5 seconds every edge refuses it.")


@contextmanager
def _delivery(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Make room for the token before it exists: one that nobody can read is worse than none."""
    if path is None:
        yield lambda _: None
        return
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(number, "w", encoding="ascii") as file:
            yield lambda text: file.write(f"{text}\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _for_scripts(one: Credential, now: datetime) -> dict[str, object]:
    """Name the fields as the contract's WorkerToken does."""
    return {
        "id": one.id,
        "kind": one.kind,
        "workerId": one.worker_id,
        "description": one.description,
        "allowedRepositories": one.policy.repositories,
        "allowedJobTypes": one.policy.types,
        "capabilities": one.policy.capabilities,
        "queues": one.policy.queues,
        "maxConcurrency": one.policy.max_concurrency,
        "isActive": state(one, now) == "active",
        "createdAt": _moment(one.created_at),
        "expiresAt": _moment(one.expires_at),
        "lastUsedAt": _moment(one.last_used_at),
        "revokedAt": _moment(one.revoked_at),
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _minute(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
