"""The configuration file: the same names as the options, below flags and environment."""

import os
import tomllib
from pathlib import Path

import click

#: an option that names the file, and so cannot stand in it
NAME = "config"


def default_path() -> Path:
    """Return where a person's own configuration belongs."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "drawbridge-worker" / "config.toml"


def read(context: click.Context, _parameter: click.Parameter, given: Path | None) -> None:
    """Make what the file says the defaults of every option; a file that was named must be there.

    Raises UsageError for what cannot be read, and for names that no option has.
    """
    path = (given or default_path()).expanduser()
    if given is None and not path.is_file():
        return
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"configuration {path}: {error}") from None
    values = {name.replace("-", "_"): value for name, value in said.items()}
    unknown = sorted(set(values) - _names(context))
    if unknown:
        raise click.UsageError(
            f"configuration {path}: {', '.join(unknown)}: no such option; write names as after"
            " the dashes, such as url or work-dir"
        )
    context.default_map = values


def _names(context: click.Context) -> set[str]:
    """Return the options of all commands: one file serves them all."""
    group = context.parent.command if context.parent is not None else None
    commands = group.commands.values() if isinstance(group, click.Group) else (context.command,)
    return {str(one.name) for command in commands for one in command.params} - {NAME, "once"}
