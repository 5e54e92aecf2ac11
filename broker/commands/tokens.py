"""The commands ``drawbridge tokens create``, ``list``, ``rotate``, ``allow`` and ``revoke``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from broker.commands.handover import allows, delivery, for_scripts, hand_over, minute
from broker.commands.opening import ACTOR, opened, source
from broker.errors import Unavailable
from broker.ledger.credential_rows import state
from broker.ledger.credentials import Credentials
from broker.policy import Policy
from broker.reservations.store import Reservations
from broker.settings import StoreSettings
from broker.tokens import KINDS

_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
F = TypeVar("F", bound=Callable[..., Any])
_KIND: Final = click.Choice(sorted(KINDS.values()))


def span(text: str) -> timedelta:
    """Read a length of time such as ``90d``, ``12h``, ``30m``, ``45s``; ``never`` is zero."""
    if text == "never":
        return timedelta(0)
    match = _SPAN.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time like 90d, 12h, 30m, or never")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Give several commands the same options."""

    def declare(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return declare


#: what a worker's token may allow, as the contract names it
_policy: Final = _options(
    click.option(
        "--allow-repository",
        "repositories",
        multiple=True,
        help="Owner/Name, URL, or a pattern such as Owner/*; repeatable. Without it: any.",
    ),
    click.option(
        "--allow-type", "types", multiple=True, help="Job type; repeatable. Without it: any."
    ),
    click.option("--capability", "capabilities", multiple=True, help="What it can do; repeatable."),
    click.option("--queue", "queues", multiple=True, help="Queue; repeatable. Without it: any."),
    click.option("--max-concurrency", type=click.IntRange(min=1), help="Jobs it may hold at once."),
    click.option(
        "--ip-range",
        "ip_ranges",
        multiple=True,
        help="Address or CIDR range it may call from; repeatable. Without it: any.",
    ),
)
_handover: Final = _options(
    click.option(
        "--token-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the token there, for the owner's eyes only, instead of showing it.",
    ),
    click.option("--force", is_flag=True, help="Replace the token file if it is there."),
    click.option("--json", "as_json", is_flag=True, help="Say it for a script."),
)


@contextmanager
def _credentials() -> Iterator[Credentials]:
    """Open the credentials; the reservations may be away, and the edges then follow in 5 s."""
    settings = StoreSettings.from_env()
    reservations = Reservations.connect(settings.reservations_url)

    def tell(token_id: str) -> None:
        with suppress(Unavailable):
            reservations.revoke(token_id)

    try:
        with opened(settings) as ledger:
            yield Credentials(ledger, on_revoke=tell)
    finally:
        reservations.close()


@click.group()
def tokens() -> None:
    """Create, list, rotate, restrict and revoke tokens."""


@tokens.command()
@click.option("--kind", required=True, type=_KIND)
@click.option("--worker-id", help="The worker's name, for kind worker.")
@click.option("--description", help="For whoever reads the list.")
@_policy
@click.option("--expires-in", type=span, default="90d", show_default=True, help="Or: never.")
@_handover
def create(
    *,
    kind: str,
    worker_id: str | None,
    description: str | None,
    expires_in: timedelta,
    token_file: Path | None,
    force: bool,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Create a token and show it, this once.

    Standard output holds the token alone; what it is for is said on standard error.
    """
    if kind == "worker" and worker_id is None:
        raise click.UsageError("Say which worker: --worker-id NAME.")
    now = datetime.now(UTC)
    with opened(StoreSettings.from_env()) as ledger, delivery(token_file, force=force) as deliver:
        credential, text = Credentials(ledger).create(
            kind,
            worker_id=worker_id,
            description=description,
            policy=_policy_of(allowed),
            expires_at=now + expires_in if expires_in else None,
            created_by=ACTOR,
            source=source(),
            now=now,
        )
        deliver(text)
    hand_over(credential, text, token_file=token_file, as_json=as_json, now=now)


@tokens.command(short_help="Put a new token in the place of an old one.")
@click.argument("token_id", metavar="ID")
@click.option(
    "--overlap",
    type=span,
    default="1d",
    show_default=True,
    help="How long the old one stays good beside the new one.",
)
@click.option("--expires-in", type=span, help="Of the new one. Without it: as long as the old one.")
@_handover
def rotate(
    *,
    token_id: str,
    overlap: timedelta,
    expires_in: timedelta | None,
    token_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Put a new token in the place of an old one, and show it, this once.

    Both are good until the overlap is over; what the worker holds goes on. Again, while nobody has
    used the new one, replaces that one.
    """
    if expires_in is not None and not expires_in:
        raise click.UsageError("A rotation ends some day: name a time for --expires-in.")
    now = datetime.now(UTC)
    with _credentials() as credentials, delivery(token_file, force=force) as deliver:
        credential, text = credentials.rotate(
            token_id,
            overlap=overlap,
            expires_at=now + expires_in if expires_in else None,
            rotated_by=ACTOR,
            source=source(),
            now=now,
        )
        deliver(text)
    hand_over(credential, text, token_file=token_file, as_json=as_json, now=now)


@tokens.command(short_help="Replace what a worker's token allows.")
@click.argument("token_id", metavar="ID")
@_policy
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
def allow(*, token_id: str, as_json: bool, **allowed: Any) -> None:
    """Replace what a worker's token allows; what is not named is not restricted.

    The next claim obeys, within 5 seconds on every edge; what the worker holds it may finish.
    """
    now = datetime.now(UTC)
    with _credentials() as credentials:
        changed = credentials.allow(
            token_id, _policy_of(allowed), changed_by=ACTOR, source=source(), now=now
        )
    if as_json:
        click.echo(json.dumps(for_scripts(changed, now)))
    else:
        click.echo(f"Token {changed.id} allows what was named; within 5 seconds on every edge.")


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
        click.echo(json.dumps({"items": [for_scripts(one, now) for one in found]}))
        return
    rows = [("ID", "KIND", "WORKER", "STATE", "EXPIRES", "LAST USED", "ALLOWS", "DESCRIPTION")]
    rows += [
        (
            one.id,
            one.kind,
            one.worker_id or "-",
            state(one, now),
            minute(one.expires_at) or "never",
            minute(one.last_used_at) or "never",
            _plain(allows(one.policy)) if one.kind == "worker" else "-",
            _plain(one.description or ""),
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
    with _credentials() as credentials:
        credential = credentials.revoke(token_id, revoked_by=ACTOR, source=source(), now=now)
    if as_json:
        click.echo(json.dumps(for_scripts(credential, now)))
    else:
        click.echo(f"Token {credential.id} is revoked; within 5 seconds every edge refuses it.")


def _plain(text: str) -> str:
    """Leave printable ASCII: who may create tokens wrote it, and the terminal is the reader's."""
    return re.sub(r"[^ -~]", "?", text)


def _policy_of(allowed: dict[str, Any]) -> Policy:
    """Read the options of a policy; one that was not given does not restrict."""
    return Policy(**{name: value or None for name, value in allowed.items()})
