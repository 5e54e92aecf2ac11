"""The command line: here everything is put together."""

import contextlib
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import click

from remote_worker import codex, credentials, daemon, isolation, log, preflight
from remote_worker.board import Board
from remote_worker.client import Client
from remote_worker.errors import Misconfigured
from remote_worker.gates import Passed
from remote_worker.handlers import load
from remote_worker.handlers.context import Handler
from remote_worker.options import PREFIX, common, option, settings_of
from remote_worker.redact import Redactor
from remote_worker.settings import Settings, TokenFile
from remote_worker.spool import Spool
from remote_worker.wire import Identity, Wire

logger = logging.getLogger(__name__)


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
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


@main.command(short_help="Claim jobs and run them until SIGTERM.")
@common
@option("--max-jobs", type=click.IntRange(1), help="End after this many jobs.")
@click.option("--once", is_flag=True, help="End after one job.")
@option("--idle-exit", type=click.FloatRange(0), help="End after so many seconds without a job.")
@option(
    "--drain-timeout",
    type=click.FloatRange(0),
    help="Seconds a drain waits for what runs before it is given back [for ever].",
)
@option("--health-port", type=click.IntRange(0, 65535), help="Serve /healthz and /metrics there.")
@option("--health-host", default="127.0.0.1", show_default=True, help="Where --health-port is.")
def run(
    *,
    once: bool,
    health_port: int | None,
    health_host: str,
    log_format: str,
    **options: Any,
) -> None:
    """Claim jobs and run them until SIGTERM (finishes what runs; a second one gives it back)."""
    log.set_up(log_format)
    isolation.shut()
    settings = settings_of(options | ({"max_jobs": 1} if once else {}))
    handlers = _handlers(settings)
    wire, make_redactor = _connect(settings)
    passed = preflight.check(settings, wire)
    if not passed.ok or passed.welcome is None:
        _show(passed, stream_is_stderr=True)
        sys.exit(_closed(passed))
    for gate in passed.warnings:
        logger.warning(
            "%s: %s → %s", gate.name, gate.detail, gate.way_out, extra={"action": "gate"}
        )
    spool = Spool(settings.work_dir, account=settings.run_as)
    with contextlib.ExitStack() as stack:
        try:
            spool.open()
            stack.callback(spool.close)
            worker = daemon.Daemon(
                settings,
                client=Client(wire),
                spool=spool,
                handlers=handlers,
                make_redactor=make_redactor,
                welcome=passed.welcome,
            )
            _watch(stack, Board(worker), log_format, host=health_host, port=health_port)
        except Misconfigured as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(daemon.EXIT_PREFLIGHT)
        code = worker.run()
    sys.exit(code)


def _watch(
    stack: contextlib.ExitStack, board: Board, log_format: str, *, host: str, port: int | None
) -> None:
    """Let people and monitors see the daemon; what nobody asked for is not even imported."""
    if port is not None:
        from remote_worker.health import Health  # noqa: PLC0415 - a tenth of an idle daemon

        health = stack.enter_context(Health(board, host=host, port=port))
        logger.info("health at port %d", health.port, extra={"action": "health"})
    if log_format == "auto" and sys.stderr.isatty():
        try:
            from remote_worker.terminal import Terminal  # noqa: PLC0415 - an extra, and large
        except ModuleNotFoundError:
            return
        stack.enter_context(Terminal(board))


def _handlers(settings: Settings) -> Mapping[str, Handler]:
    """Return the job types of this worker, and refuse to claim one that nobody here can run."""
    try:
        handlers = load()
    except Misconfigured as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(daemon.EXIT_PREFLIGHT)
    unknown = sorted(set(settings.types) - set(handlers))
    if unknown:
        raise click.UsageError(
            f"--types {', '.join(unknown)}: this worker runs {', '.join(sorted(handlers))}"
            " (a package can add a type)"
        )
    if "command" in settings.types and not settings.allow_program:
        raise click.UsageError(
            "--types command: no program may run here; name each with --allow-program"
        )
    # What the owner did not name nobody may start, whatever an edge sends.
    return {name: one for name, one in handlers.items() if name in (settings.types or handlers)}


def _closed(passed: Passed) -> int:
    """Return the exit code of gates that did not all open."""
    return daemon.EXIT_REFUSED if passed.refused else daemon.EXIT_PREFLIGHT


@main.command()
@common
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def check(*, as_json: bool, log_format: str, **options: Any) -> None:
    """Try everything a job would need, and claim nothing."""
    log.set_up(log_format)
    settings = settings_of(options)
    _handlers(settings)
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
    sys.exit(daemon.EXIT_OK if passed.ok else _closed(passed))


def _connect(settings: Settings) -> tuple[Wire, Callable[[], Redactor]]:
    """Return the edge, and how to make a redactor that knows every secret there is now."""
    try:
        token = TokenFile(settings.token_file)
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
        return Redactor([*token.known, *known, *credentials.secrets(settings)])

    wire = Wire(
        settings.url, token=token, identity=identity, proxy=settings.proxy, ca_file=settings.ca_file
    )
    return wire, make_redactor


def _show(passed: Passed, *, stream_is_stderr: bool) -> None:
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
