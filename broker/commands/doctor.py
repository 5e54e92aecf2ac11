"""The command ``drawbridge doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import click

from broker.commands import celery_checks, ledger_checks, redis_checks, waiting_checks
from broker.commands.findings import Finding, Level, ok, problem, skipped
from broker.errors import ConfigurationError, LedgerUnavailable, StorageAway
from broker.ledger.engine import Ledger
from broker.settings import BridgeSettings, StoreSettings
from broker.storage import artifact_store

_MARKS: Final = {Level.OK: "ok", Level.NOTICE: "NOTE", Level.PROBLEM: "PROBLEM", Level.SKIPPED: "-"}


@click.command()
@click.option("-A", "--app", "app_name", help="The orchestrator's app, e.g. proj.celery.")
@click.option(
    "--queue", "queues", multiple=True, help="A bridged queue; default: DRAWBRIDGE_QUEUES."
)
@click.option("--broker-url", help="The Celery broker; default: DRAWBRIDGE_BROKER_URL.")
@click.option("--result-backend", help="Celery's; default: DRAWBRIDGE_RESULT_BACKEND.")
@click.option("--json", "as_json", is_flag=True, help="Say it for a script.")
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    app_name: str | None,
    queues: tuple[str, ...],
    broker_url: str | None,
    result_backend: str | None,
    as_json: bool,
) -> None:
    """Look whether all is well, and say what to do where it is not.

    Changes nothing. Exits with 1 when there is a problem.
    """
    told = BridgeSettings.from_env()
    told, app = celery_checks.known(
        replace(
            told,
            queues=queues or told.queues,
            broker_url=broker_url or told.broker_url,
            result_backend=result_backend or told.result_backend,
        ),
        app_name,
    )
    urls = {"celery broker": told.broker_url, "result backend": told.result_backend}
    others = {name: url for name, url in urls.items() if url is not None}
    found = list(examine(StoreSettings.from_env(), others))
    ill = {one.check for one in found if one.level is Level.PROBLEM}
    well = "celery broker" not in ill
    found += celery_checks.celery(told, app, own=app_name is not None, well=well)
    bad = [one for one in found if one.level is Level.PROBLEM]
    if as_json:
        click.echo(json.dumps({"ok": not bad, "checks": [_for_scripts(one) for one in found]}))
    else:
        click.echo("\n".join(_for_people(found)))
    ctx.exit(1 if bad else 0)


def examine(settings: StoreSettings, others: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything; what lies behind something broken is skipped."""
    ledger = Ledger(settings.database_url, synchronous=settings.sqlite_synchronous)
    try:
        reached = ledger_checks.reach(settings.database_url, ledger)
        yield reached
        known = reached.level is Level.OK
        if known:
            yield ledger_checks.clock(ledger)
        servers = _servers(settings.reservations_url, others)
        yield from servers
        answers = servers[0].level is Level.OK
        yield _files(settings)
        if known:
            yield from _inside(ledger, settings.reservations_url, answers=answers)
        else:
            yield skipped("contents", "The ledger cannot be read.")
    finally:
        ledger.close()


def _servers(url: str, others: Mapping[str, str]) -> list[Finding]:
    try:
        return list(redis_checks.server(url, others))
    except ValueError as error:
        raise ConfigurationError(
            f"A URL of a Redis cannot be read; write redis://host:port/db ({error})"
        ) from error


def _files(settings: StoreSettings) -> Finding:
    store = artifact_store(settings)
    try:
        store.probe()
    except StorageAway as error:
        return problem(
            "artifacts",
            f"{store}: {error.message}.",
            "Start it, or correct DRAWBRIDGE_ARTIFACTS_URL or DRAWBRIDGE_ARTIFACTS_DIR, and for a "
            "bucket the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).",
        )
    return ok("artifacts", f"{store} answers.")


def _inside(ledger: Ledger, url: str, *, answers: bool) -> Iterator[Finding]:
    """Look at what lies in the stores."""
    try:
        yield from ledger_checks.contents(ledger)
        queues = ledger_checks.queues(ledger)
    except LedgerUnavailable as error:
        yield skipped("contents", error.message)
        return
    if answers:
        yield from redis_checks.life(url, queues)
        yield from waiting_checks.waiting(ledger, url)
    else:
        yield skipped("bridge", "The reservations do not answer.")


def _for_scripts(one: Finding) -> dict[str, str | None]:
    return {
        "check": one.check, "status": one.level, "message": one.message, "wayOut": one.way_out,
    }  # fmt: skip


def _for_people(found: Sequence[Finding]) -> list[str]:
    wide = max(len(one.check) for one in found)
    lines = []
    for one in found:
        lines.append(f"{_MARKS[one.level]:7}  {one.check:{wide}}  {one.message}")
        if one.way_out is not None:
            lines.append(f"{'':7}  {'':{wide}}  → {one.way_out}")
    return lines
