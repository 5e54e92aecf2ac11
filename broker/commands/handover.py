"""The only one to know how a new token reaches the person who asked for it, and nobody else."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click

from broker.credential import Credential
from broker.errors import ConfigurationError
from broker.ledger.credential_rows import state
from broker.policy import Policy


@contextmanager
def delivery(path: Path | None, *, force: bool) -> Iterator[Callable[[str], object]]:
    """Make room for the token before it exists: one that nobody can read is worse than none.

    Raises:
        ConfigurationError: the file is there already, or cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    if not force and path.exists():
        raise ConfigurationError(f"{path} is there already; name another file, or add --force")
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


def hand_over(
    credential: Credential,
    text: str,
    *,
    token_file: Path | None,
    as_json: bool,
    now: datetime,
) -> None:
    """Show a token, this once; standard output holds it alone, or JSON."""
    if as_json:
        shown = {} if token_file else {"token": text}
        click.echo(json.dumps({**shown, **for_scripts(credential, now)}))
        return
    if token_file is None:
        click.echo(text)
    kind, worker_id = credential.kind, credential.worker_id
    owner = f"{kind} {worker_id}" if worker_id else kind
    place = f"in {token_file}" if token_file else "shown above, and never again"
    until = minute(credential.expires_at) or "it is revoked"
    click.echo(f"Token {credential.id} for {owner}, valid until {until}: {place}.", err=True)


def for_scripts(one: Credential, now: datetime) -> dict[str, object]:
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
        "ipRanges": one.policy.ip_ranges,
        "isActive": state(one, now) == "active",
        "createdAt": _moment(one.created_at),
        "expiresAt": _moment(one.expires_at),
        "lastUsedAt": _moment(one.last_used_at),
        "revokedAt": _moment(one.revoked_at),
        "rotatedTo": one.rotated_to,
    }


def allows(policy: Policy) -> str:
    """Say in a few words what a worker's token allows."""
    lists = {
        "types": policy.types,
        "repositories": policy.repositories,
        "capabilities": policy.capabilities,
        "queues": policy.queues,
        "from": policy.ip_ranges,
    }
    told = [
        f"{name}={','.join(some) or 'none'}" for name, some in lists.items() if some is not None
    ]
    if policy.max_concurrency is not None:
        told.append(f"at once={policy.max_concurrency}")
    return " ".join(told) or "all"


def minute(moment: datetime | None) -> str | None:
    """Write a moment for people."""
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
