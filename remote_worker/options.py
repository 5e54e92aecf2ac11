"""What can be set and where: options, their twins in the environment, and what becomes of both."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from typing import Any

import click
from requests.utils import should_bypass_proxies

from remote_worker import account, capabilities, config_file
from remote_worker.child_options import CHILD_OPTIONS, limits_of
from remote_worker.errors import Misconfigured
from remote_worker.handlers.codex_payload import check_effort, check_model
from remote_worker.settings import (
    GIT_AUTHOR,
    LOG_FORMATS,
    SANDBOXES,
    WAY_OUT,
    Settings,
)

PREFIX = "DRAWBRIDGE_"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}=[A-Za-z0-9._-]{1,64}")


class _Words(click.ParamType[tuple[str, ...]]):
    """A list written with commas or blanks."""

    name = "words"

    def convert(
        self, value: object, _param: click.Parameter | None, _ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split it."""
        if isinstance(value, list | tuple):
            return tuple(map(str, value))
        return tuple(str(value).replace(",", " ").split())


def _program(name: str) -> str:
    """Return a program's name as it is, and a path to it from the root: it runs elsewhere."""
    return str(Path(name).expanduser().absolute()) if os.sep in name else name


def _default_work_dir() -> Path:
    """Return where state belongs on this system."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "drawbridge-worker"


def _codex_home(named: Path | None, run_as: account.Account | None) -> Path:
    """Return the CODEX_HOME of jobs: else that of the `codex` of whoever runs them."""
    own = os.environ.get("CODEX_HOME") or Path.home() / ".codex"
    usual = Path(own) if run_as is None else run_as.home / ".codex"
    return (named or usual).expanduser().absolute()


def option(name: str, **more: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option with its environment twin: --work-dir is DRAWBRIDGE_WORK_DIR."""
    twin = PREFIX + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=twin, show_envvar=True, **more)  # type: ignore[arg-type]


_PATH = click.Path(path_type=Path)
_COMMON = (
    option(
        f"--{config_file.NAME}", type=_PATH, is_eager=True, expose_value=False,
        callback=config_file.read,
        help="TOML file of these options; flags and environment go first"
        " [~/.config/drawbridge-worker/config.toml].",
    ),
    option("--url", required=True, help="The edge: https://host[:port]."),
    option(
        "--token-file", required=True, type=_PATH, help="File with the worker's token, mode 0600."
    ),
    option("--worker-id", default=gethostname, help="The name the token was made for [hostname]."),
    option(
        "--types", type=_Words(), default="",
        help="Job types to claim [all the token allows; those we cannot run are failed].",
    ),
    option(
        "--capabilities", type=_Words(), default=capabilities.AUTO, show_default=True,
        help="What this machine can do; auto is what is found: git, codex, gh, docker, gpu…",
    ),
    option("--label", multiple=True, help="A capability of the form key=value; repeatable."),
    option(
        "--proxy", help="Proxy on the way to the edge [HTTPS_PROXY, unless NO_PROXY names it]."
    ),
    option(
        "--ca-file", type=_PATH,
        help="Certificates to trust for the edge [SSL_CERT_FILE, else the usual authorities].",
    ),
    option(
        "--work-dir", type=_PATH, default=_default_work_dir,
        help="Workspaces and spool [~/.local/state/drawbridge-worker].",
    ),
    option("--git", default="git", help="The git program."),
    option("--codex", default="codex", help="The Codex CLI."),
    option(
        "--codex-home", type=_PATH,
        help="The CODEX_HOME that is logged in [~/.codex, of --run-as where there is one].",
    ),
    option(
        "--codex-sandbox", type=click.Choice(SANDBOXES), default="workspace-write",
        show_default=True, help="Codex's own sandbox; a job cannot choose it.",
    ),
    option("--model", help="Model for jobs that name none."),
    option("--effort", help="Reasoning effort for jobs that name none."),
    option(
        "--allow-repository", multiple=True,
        help="Repositories to take, exact or glob (Org/*, file:///srv/*); repeatable."
        " Without it: any on a host, none on this machine.",
    ),
    option(
        "--git-token-file", type=_PATH,
        help="File with a token for the git host, mode 0600: private clones and publishing.",
    ),
    option("--git-host", default="github.com", show_default=True, help="The token's host."),
    option("--use-gh", is_flag=True, help="Use the login of your `gh` in a token file's place."),
    option("--gh", default="gh", help="The GitHub CLI."),
    option("--forge-api", help="REST API for pull requests [the host's: GitHub or Enterprise]."),
    option(
        "--git-author", default=GIT_AUTHOR, show_default=True,
        help="Whose the published commits are."
    ),
    option(
        "--allow-workflows", is_flag=True,
        help="Publish patches that change .github/workflows too.",
    ),
    option(
        "--pass-env", type=_Words(), default="",
        help="Variables that jobs get beside proxies and certificates.",
    ),
    option(
        "--lease-seconds", type=click.IntRange(1, 3600), default=60, show_default=True,
        help="How long a job is ours without a heartbeat; how soon others may have it then.",
    ),
    option(
        "--wait-seconds", type=click.IntRange(0, 50), default=25, show_default=True,
        help="How long the edge may hold a claim until there is a job.",
    ),
    option(
        "--time-limit", type=click.IntRange(1), default=7200, show_default=True,
        help="Seconds a job may take at most.",
    ),
    *(option(name, **more) for name, more in CHILD_OPTIONS),
    option(
        "--concurrency", type=click.IntRange(1, 100), default=1, show_default=True,
        help="Jobs at once.",
    ),
    option(
        "--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True,
        help="auto: a live view on a terminal, JSON lines elsewhere.",
    ),
)  # fmt: skip


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of both."""
    for one in reversed(_COMMON):
        command = one(command)
    return command


def settings_of(options: dict[str, Any]) -> Settings:
    """Turn options into settings; what cannot work is a usage error."""
    if not check_model(options["model"]) or not check_effort(options["effort"]):
        raise click.UsageError("--model or --effort does not look like one")
    token_file = options["git_token_file"]
    names = (*WAY_OUT, *options["pass_env"])
    passed = {name: os.environ[name] for name in names if name in os.environ}
    try:
        run_as = account.find(options["run_as"]) if options["run_as"] else None
        return Settings(
            url=options["url"],
            token_file=options["token_file"].expanduser(),
            worker_id=options["worker_id"],
            work_dir=options["work_dir"].expanduser().absolute(),
            types=options["types"],
            capabilities=_capabilities(options),
            proxy=_proxy(options),
            ca_file=_ca_file(options),
            lease_s=options["lease_seconds"],
            wait_s=options["wait_seconds"],
            concurrency=options["concurrency"],
            max_jobs=options.get("max_jobs"),
            idle_exit_s=options.get("idle_exit"),
            drain_timeout_s=options.get("drain_timeout"),
            allow_repository=options["allow_repository"],
            git=_program(options["git"]),
            codex=_program(options["codex"]),
            codex_home=_codex_home(options["codex_home"], run_as),
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
            isolation=options["isolation"],
            run_as=run_as,
            hide=tuple(path.expanduser().absolute() for path in options["hide"]),
            limits=limits_of(options),
            allow_program=options["allow_program"],
            path=os.environ.get("PATH", os.defpath),
        )
    except Misconfigured as error:
        raise click.UsageError(str(error)) from None


def _capabilities(options: dict[str, Any]) -> tuple[str, ...]:
    """Return what to claim with."""
    for label in options["label"]:
        if not _LABEL.fullmatch(label):
            raise Misconfigured(f"--label {label!r}: write key=value")
    programs = (options["git"], options["codex"], options["gh"])
    return capabilities.told(
        options["capabilities"], options["label"], programs=programs,
        path=os.environ.get("PATH", os.defpath),
    )  # fmt: skip


def _proxy(options: dict[str, Any]) -> str | None:
    """Return the proxy to the edge: the option's, else the environment's, as everywhere."""
    if options["proxy"]:
        return str(options["proxy"])
    found = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = options["url"]
    # plain http goes to this machine alone
    if not found or not url.startswith("https:") or should_bypass_proxies(url, no_proxy=None):
        return None
    return found


def _ca_file(options: dict[str, Any]) -> Path | None:
    """Return the certificates to trust."""
    named = options["ca_file"] or os.environ.get("SSL_CERT_FILE")
    return None if not named else Path(named).expanduser()
