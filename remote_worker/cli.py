"""The command line: the only reader of the environment; here everything is put together."""

import json
import logging
import os
import sys
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from socket import gethostname
from typing import Any

import click

from remote_worker import codex, credentials, daemon, log, preflight
from remote_worker.client import Client
from remote_worker.errors import Misconfigured
from remote_worker.handlers import load
from remote_worker.handlers.codex_payload import check_effort, check_model
from remote_worker.redact import Redactor
from remote_worker.settings import (
    GIT_AUTHOR,
    LOG_FORMATS,
    SANDBOXES,
    WAY_OUT,
    Settings,
    read_token,
)
from remote_worker.spool import Spool
from remote_worker.wire import Identity, Wire

logger = logging.getLogger(__name__)

_PREFIX = "DRAWBRIDGE_"


class _Words(click.ParamType[tuple[str, ...]]):
    """A list written with commas or blanks."""

    name = "words"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split it."""
        if isinstance(value, tuple):
            return value
        return tuple(str(value).replace(",", " ").split())


def _program(name: str) -> str:
    """Return a program's name as it is, and a path to it from the root: it runs elsewhere."""
    return str(Path(name).expanduser().absolute()) if os.sep in name else name


def _default_work_dir() -> Path:
    """Return where state belongs on this system."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "drawbridge-worker"


def _default_codex_home() -> Path:
    """Return the CODEX_HOME a person's own `codex` would use."""
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex")


def _option(name: str, **more: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option with its environment twin: --work-dir is DRAWBRIDGE_WORK_DIR."""
    twin = _PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=twin, show_envvar=True, **more)  # type: ignore[arg-type]


_PATH = click.Path(path_type=Path)
_COMMON = (
    _option("--url", required=True, help="The edge: https://host[:port]."),
    _option(
        "--token-file", required=True, type=_PATH, help="File with the worker's token, mode 0600."
    ),
    _option("--worker-id", default=gethostname, help="The name the token was made for [hostname]."),
    _option(
        "--types", type=_Words(), default="",
        help="Job types to claim [all the token allows; those we cannot run are failed].",
    ),
    _option(
        "--capabilities", type=_Words(), default="codex,git", help="What this machine can do."
    ),
    _option("--work-dir", type=_PATH, default=_default_work_dir, help="Workspaces and spool."),
    _option("--git", default="git", help="The git program."),
    _option("--codex", default="codex", help="The Codex CLI."),
    _option(
        "--codex-home", type=_PATH, default=_default_codex_home,
        help="The CODEX_HOME that is logged in [~/.codex].",
    ),
    _option(
        "--codex-sandbox", type=click.Choice(SANDBOXES), default="workspace-write",
        help="Codex's own sandbox; a job cannot choose it.",
    ),
    _option("--model", help="Model for jobs that name none."),
    _option("--effort", help="Reasoning effort for jobs that name none."),
    _option(
        "--allow-repository", multiple=True,
        help="Repositories to take, exact or glob (Org/*, file:///srv/*); repeatable."
        " Without it: any on a host, none on this machine.",
    ),
    _option(
        "--git-token-file", type=_PATH,
        help="File with a token for the git host, mode 0600: private clones and publishing.",
    ),
    _option("--git-host", default="github.com", show_default=True, help="The token's host."),
    _option("--use-gh", is_flag=True, help="Use the login of your `gh` in a token file's place."),
    _option("--gh", default="gh", help="The GitHub CLI."),
    _option("--forge-api", help="REST API for pull requests [the host's: GitHub or Enterprise]."),
    _option(
        "--git-author", default=GIT_AUTHOR, help="Whose the published commits are."
    ),
    _option(
        "--allow-workflows", is_flag=True,
        help="Publish patches that change .github/workflows too.",
    ),
    _option(
        "--pass-env", type=_Words(), default="",
        help="Variables that jobs get beside proxies and certificates.",
    ),
    _option("--lease-seconds", type=click.IntRange(1, 3600), default=60, show_default=True),
    _option("--wait-seconds", type=click.IntRange(0, 50), default=25, show_default=True),
    _option(
        "--time-limit", type=click.IntRange(1), default=7200, show_default=True,
        help="Seconds a job may take at most.",
    ),
    _option("--concurrency", type=click.IntRange(1, 100), default=1, show_default=True),
    _option("--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True),
)  # fmt: skip


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of both."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="celery-drawbridge", prog_name="drawbridge-worker")
def main() -> None:
    """Run jobs of a Drawbridge edge on this machine.

    \b
    Exit codes: 0 ended as asked · 1 unexpected error · 2 usage · 3 a preflight gate is closed
                4 the edge refuses this worker · 5 something finished is still unreported
    """  # noqa: D301 - \b is click's
    known = {parameter.envvar for command in main.commands.values() for parameter in command.params}
    unknown = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
    if unknown:
        raise click.UsageError(
            f"{', '.join(unknown)}: no setting of the worker; unset it (a typing error, or a"
            " setting of the edge or the bridge that a worker must not have)"
        )


@main.command()
@_common
@_option("--max-jobs", type=click.IntRange(1), help="End after this many jobs.")
@click.option("--once", is_flag=True, help="End after one job.")
@_option("--idle-exit", type=click.FloatRange(0), help="End after so many seconds without a job.")
def run(
    *, max_jobs: int | None, once: bool, idle_exit: float | None, log_format: str, **options: object
) -> None:
    """Claim jobs and run them until SIGTERM (finishes what runs; a second one gives it back)."""
    log.set_up(log_format)
    settings = _settings(options, max_jobs=1 if once else max_jobs, idle_exit_s=idle_exit)
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
@_common
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def check(*, as_json: bool, log_format: str, **options: object) -> None:
    """Try everything a job would need, and claim nothing."""
    log.set_up(log_format)
    settings = _settings(options)
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


def _settings(
    options: dict[str, Any], *, max_jobs: int | None = None, idle_exit_s: float | None = None
) -> Settings:
    """Turn options into settings; what cannot work is a usage error."""
    if not check_model(options["model"]) or not check_effort(options["effort"]):
        raise click.UsageError("--model or --effort does not look like one")
    token_file = options["git_token_file"]
    names = (*WAY_OUT, *options["pass_env"])
    passed = {name: os.environ[name] for name in names if name in os.environ}
    try:
        return Settings(
            url=options["url"],
            token_file=options["token_file"],
            worker_id=options["worker_id"],
            work_dir=options["work_dir"].expanduser().absolute(),
            types=options["types"],
            capabilities=options["capabilities"],
            lease_s=options["lease_seconds"],
            wait_s=options["wait_seconds"],
            concurrency=options["concurrency"],
            max_jobs=max_jobs,
            idle_exit_s=idle_exit_s,
            allow_repository=options["allow_repository"],
            git=_program(options["git"]),
            codex=_program(options["codex"]),
            codex_home=options["codex_home"].expanduser().absolute(),
            codex_sandbox=options["codex_sandbox"],
            model=options["model"],
            effort=options["effort"],
            time_limit_s=options["time_limit"],
            pass_environment=passed,
            git_token_file=token_file and token_file.expanduser().absolute(),
            git_host=options["git_host"],
            use_gh=options["use_gh"],
            gh=options["gh"],
            forge_api=options["forge_api"],
            git_author=options["git_author"],
            allow_workflows=options["allow_workflows"],
            path=os.environ.get("PATH", os.defpath),
        )
    except Misconfigured as error:
        raise click.UsageError(str(error)) from None


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
