"""What the owner may set about the children of his worker: isolation, limits, programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import psutil

from remote_worker.limits import MIB, Limits
from remote_worker.settings import ISOLATIONS

_MEMORY_SHARE = 0.75


def _memory_mib() -> int:
    """Return three quarters of this machine's memory: the rest is its owner's."""
    return max(1, int(psutil.virtual_memory().total * _MEMORY_SHARE) // MIB)


#: name and what click wants to know of it; the command line gives each its twin
CHILD_OPTIONS: tuple[tuple[str, dict[str, object]], ...] = (
    ("--isolation", {
        "type": click.Choice(ISOLATIONS), "default": "auto", "show_default": True,
        "help": "What shuts a job in; auto takes what works and says what it is.",
    }),
    ("--run-as", {
        "metavar": "USER",
        "help": "Whose the processes of jobs are, when the worker is root [its own].",
    }),
    ("--hide", {
        "multiple": True, "type": click.Path(path_type=Path),
        "help": "What no job may see, beside the worker's own secrets; repeatable.",
    }),
    ("--memory-limit", {
        "type": click.IntRange(16), "default": _memory_mib,
        "help": "MiB a job's processes may have together [3/4 of this machine].",
    }),
    ("--cpu-limit", {"type": click.IntRange(1), "help": "CPU seconds of a process [none]."}),
    ("--task-limit", {
        "type": click.IntRange(8), "default": 4096, "show_default": True,
        "help": "Processes and threads of a job.",
    }),
    ("--open-file-limit", {
        "type": click.IntRange(64), "default": 4096, "show_default": True,
        "help": "Open files of a process.",
    }),
    ("--file-limit", {
        "type": click.IntRange(1), "default": 10240, "show_default": True,
        "help": "MiB of one file.",
    }),
    ("--workspace-limit", {
        "type": click.IntRange(1), "default": 10240, "show_default": True,
        "help": "MiB of a job's whole directory.",
    }),
    ("--allow-program", {
        "multiple": True,
        "help": "A program that jobs of type `command` may run: the first word of their argv, as"
        " they write it; repeatable. Without it there is no such type here.",
    }),
)  # fmt: skip


def limits_of(options: Mapping[str, Any]) -> Limits:
    """Return the limits of the options."""
    return Limits(
        memory_bytes=options["memory_limit"] * MIB,
        cpu_s=options["cpu_limit"],
        tasks=options["task_limit"],
        open_files=options["open_file_limit"],
        file_bytes=options["file_limit"] * MIB,
        workspace_bytes=options["workspace_limit"] * MIB,
    )
