"""The command ``drawbridge``: knows each subcommand's name and place, and imports only the one run.

A machine that runs the edge has no Celery, one that runs the bridge no Flask; both have this file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Final

import click

from broker.errors import DrawbridgeError

_OURS: Final = frozenset({"broker", "edge_api", "remote_worker"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a subcommand is, what it does, and the extra that brings what it needs."""

    target: str
    help: str
    extra: str


PLACES: Final = {
    "audit": Place("broker.commands.audit:audit", "List and verify who did what.", "edge"),
    "beat": Place("broker.bridge.cli:beat", "Run Celery beat, which nudges the bridge.", "bridge"),
    "bridge": Place("broker.bridge.cli:bridge", "Run the bridge to Celery.", "bridge"),
    "doctor": Place(
        "broker.commands.doctor:doctor", "Look whether all is well, and say what to do.", "edge"
    ),
    "edge": Place("edge_api.cli:edge", "Serve the HTTP API that remote workers reach.", "edge"),
    "jobs": Place(
        "broker.commands.jobs:jobs", "Submit, follow and cancel jobs through an edge.", "terminal"
    ),
    "migrate": Place(
        "broker.commands.migrate:migrate", "Bring the ledger to this version's tables.", "edge"
    ),
    "policy": Place(
        "broker.commands.policy:policy", "Tell whether a worker would get a job.", "edge"
    ),
    "redrive": Place(
        "broker.commands.redrive:redrive", "Bring back jobs that failed for good.", "edge"
    ),
    "tokens": Place(
        "broker.commands.tokens:tokens", "Create, list, rotate and revoke tokens.", "edge"
    ),
    "workers": Place(
        "broker.commands.workers:workers", "Look at the remote workers through an edge.", "terminal"
    ),
    "up": Place("broker.stack.up:up", "Run everything on this machine until Ctrl-C.", "demo"),
}


class Commands(click.Group):
    """A group that imports a subcommand when it is run, and turns refusals into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Name the subcommands."""
        return sorted(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a subcommand.

        Raises:
            click.ClickException: its libraries are not installed.
        """
        place = PLACES.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in _OURS:
                raise
            raise click.ClickException(
                f"`drawbridge {cmd_name}` needs {error.name}; "
                f"run: pip install 'celery-drawbridge[{place.extra}]'",
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{place.target} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, PLACES[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; a refusal becomes one line on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except DrawbridgeError as error:
            raise click.ClickException(" ".join(error.message.split())) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="celery-drawbridge", message="%(version)s")
def drawbridge() -> None:
    """Give the tasks of a Celery queue to workers that reach nothing but HTTP."""


def main() -> None:
    """Run the command line."""
    drawbridge(prog_name="drawbridge")
