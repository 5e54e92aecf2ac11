"""The command ``drawbridge policy test``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from broker import issuers
from broker.commands.opening import opened
from broker.ledger import credential_rows, fleet
from broker.policy import Lane, Policy, canonical_repository
from broker.records import RemoteWorker
from broker.settings import BridgeSettings, Environment, StoreSettings
from broker.why import Excluded, closest

#: jobs that a worker may hold and still be counted right
HELD_MAX = 1000


@click.group()
def policy() -> None:
    """Ask what credentials allow."""


@policy.command(short_help="Tell whether a worker would get such a job now.")
@click.option("--worker", "worker_id", required=True, help="The worker's name.")
@click.option("--type", "job_type", required=True, help="The job's type.")
@click.option("--repository", help="The job's repository, if it has one.")
@click.option("--queue", help="The job's queue; default: the first of DRAWBRIDGE_QUEUES.")
@click.option("--require", "required", multiple=True, help="Capability it needs; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_context
def test(
    ctx: click.Context,
    *,
    worker_id: str,
    job_type: str,
    repository: str | None,
    queue: str | None,
    required: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tell whether a worker would get such a job now, and which rule decides.

    Looks at its good tokens, at what the rules of DRAWBRIDGE_OIDC_CONFIG give its JWTs, and at
    what its last hello said. Exits with 1 when it would not.
    """
    lane = Lane(
        queue or BridgeSettings.from_env().queues[0],
        job_type,
        None if repository is None else canonical_repository(repository),
        tuple(sorted(set(required))),
    )
    found = _look(worker_id, lane)
    verdict = found.verdict
    if as_json:
        said = {"workerId": worker_id, "tokenId": found.credential, "allowed": verdict.allowed}
        click.echo(json.dumps({**said, "rule": verdict.rule, "message": verdict.message}))
    else:
        answer = "yes" if verdict.allowed else f"no, by {verdict.rule}"
        token = f" (token {found.credential})" if found.credential else ""
        click.echo(f"{answer}: {verdict.message}{token}")
    ctx.exit(0 if verdict.allowed else 1)


def _look(worker_id: str, lane: Lane) -> Excluded:
    with opened(StoreSettings.from_env()) as ledger, ledger.read() as conn:
        good = credential_rows.good_of(conn, [worker_id], datetime.now(UTC))
        known = fleet.known_of(conn, [worker_id], limit=1).get(worker_id)
        held = fleet.held_by(conn, [worker_id], limit=HELD_MAX).get(worker_id, ())
        drained = worker_id in fleet.draining(conn, [worker_id])
    worker = RemoteWorker(
        worker_id=worker_id,
        online=False,
        last_seen_at=None,
        first_seen_at=known.first_seen_at if known else None,
        hello=known.hello if known else {},
        held=tuple(held),
        draining=drained,
        paused=known.paused if known else (),
    )
    tokens = [(one.id, one.policy) for one in good]
    return closest(worker, lane, [*tokens, *rules().get(worker_id, ())], drained=drained)


def rules() -> Mapping[str, Sequence[tuple[str, Policy]]]:
    """Return what JWTs of the issuers that the edge believes allow each worker."""
    config = Environment().get("DRAWBRIDGE_OIDC_CONFIG")
    return {} if config is None else issuers.policies(issuers.read(Path(config)))
