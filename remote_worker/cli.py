"""The command line: here everything is put together."""

import json
import logging
import os
import sys
import uuid
from collections.abc import Callable
from importlib import metadata

import click

from remote_worker import codex, credentials, daemon, isolation, log, preflight
from remote_worker.client import Client
from remote_worker.errors import Misconfigured
from remote_worker.handlers import load
from remote_worker.options import PREFIX, common, option, settings_of
from remote_worker.redact import Redactor
from remote_worker.settings import Settings, read_token
from remote_worker.spool import Spool
from remote_worker.wire import Identity, Wire

logger = logging.getLogger(__name__)


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="celery-drawbridge", prog_name="drawbridge-worker")
def main() -> None:
    """Run jobs of a Drawbridge edge on this machine.

    \b
    Exit codes: 0 ended as asked · 1 unexpected error · 2 usage · 3 a preflight gate is closed
                4 the edge refuses this worker · 5 something finished is still unreported
    """  # noqa: D301 - \b is click's
    known = {parameter.envvar for command in main.commands.values() for parameter in command.params}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise click.UsageError(
            f"{', '.join(unknown)}: no setting of the worker; unset it (a typing error, or a"
            " setting of the edge or the bridge that a worker must not have)"
        )


@main.command()
@common
@option("--max-jobs", type=click.IntRange(1), help="End after this many jobs.")
@click.option("--once", is_flag=True, help="End after one job.")
@option("--idle-exit", type=click.FloatRange(0), help="End after so many seconds without a job.")
def run(
    *, max_jobs: int | None, once: bool, idle_exit: float | None, log_format: str, **options: object
) -> None:
    """Claim jobs and run them until SIGTERM (finishes what runs; a second one gives it back)."""
    log.set_up(log_format)
    isolation.shut()
    settings = settings_of(options, max_jobs=1 if once else max_jobs, idle_exit_s=idle_exit)
    wire, make_redactor = _connect(settings)
    passed = preflight.check(settings, wire)
    if not passed.ok or passed.welcome is None:
        _show(passed, stream_is_stderr=True)
        sys.exit(daemon.EXIT_PREFLIGHT)
    for gate in passed.warnings:
        logger.warning(
            "%s: %s → %s", gate.name, gate.detail, gate.way_out, extra={"action": "gate"}
        )
    spool = Spool(settings.work_dir)
    try:
        handlers = load()
        spool.open()
    except Misconfigured as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(daemon.EXIT_PREFLIGHT)
    try:
        code = daemon.Daemon(
            settings,
            client=Client(wire),
            spool=spool,
            handlers=handlers,
            make_redactor=make_redactor,
            welcome=passed.welcome,
        ).run()
    finally:
        spool.close()
    sys.exit(code)


@main.command()
@common
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def check(*, as_json: bool, log_format: str, **options: object) -> None:
    """Try everything a job would need, and claim nothing."""
    log.set_up(log_format)
    settings = settings_of(options)
    wire, _ = _connect(settings)
    passed = preflight.check(settings, wire)
    if as_json:
        gates = [
            {
                "name": g.name, "ok": g.ok, "warning": g.warning, "detail": g.detail,
                "wayOut": g.way_out or None,
            }
            for g in passed.gates
        ]  # fmt: skip
        click.echo(json.dumps({"ok": passed.ok, "gates": gates}))
    else:
        _show(passed, stream_is_stderr=False)
    sys.exit(daemon.EXIT_OK if passed.ok else daemon.EXIT_PREFLIGHT)


def _connect(settings: Settings) -> tuple[Wire, Callable[[], Redactor]]:
    """Return the edge, and how to make a redactor that knows every secret there is now."""
    try:
        token = read_token(settings.token_file)
    except Misconfigured as error:
        raise click.UsageError(str(error)) from None
    try:
        version = metadata.version("celery-drawbridge")
    except metadata.PackageNotFoundError:
        version = "0"
    identity = Identity(
        worker_id=settings.worker_id, instance_id=str(uuid.uuid4()), version=version
    )

    def make_redactor() -> Redactor:
        known = (*settings.passed_secrets(), *codex.secrets(settings))
        return Redactor([token, *known, *credentials.secrets(settings)])

    return Wire(settings.url, token=token, identity=identity), make_redactor


def _show(passed: preflight.Passed, *, stream_is_stderr: bool) -> None:
    """Print the gates as a table, with the way out of each closed one."""
    width = max(len(gate.name) for gate in passed.gates)
    for gate in passed.gates:
        mark = (
            click.style("FAIL", fg="red")
            if not gate.ok
            else click.style("warn", fg="yellow")
            if gate.warning
            else click.style("ok  ", fg="green")
        )
        click.echo(f"{mark} {gate.name:<{width}}  {gate.detail}", err=stream_is_stderr)
        if gate.way_out:
            click.echo(f"     {'':<{width}}  → {gate.way_out}", err=stream_is_stderr)
