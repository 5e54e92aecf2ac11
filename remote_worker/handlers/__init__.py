"""The job types this worker runs: its own, and those of packages its owner has installed."""

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from remote_worker.errors import Misconfigured
from remote_worker.handlers.codex_exec import codex_exec
from remote_worker.handlers.command import command
from remote_worker.handlers.context import Handler

#: A package adds a job type by an entry point of this group: its name is the type.
GROUP = "drawbridge_worker.handlers"
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

HANDLERS: Mapping[str, Handler] = MappingProxyType({"codex_exec": codex_exec, "command": command})


def load() -> Mapping[str, Handler]:
    """Return all handlers; one that cannot be had is an error now and not at its first job."""
    found = dict(HANDLERS)
    for point in entry_points(group=GROUP):
        if not _TYPE.fullmatch(point.name) or point.name in found:
            raise Misconfigured(
                f"entry point {point.name!r} ({point.value}): no name for a job type, or one that"
                " is taken; uninstall one of the two packages"
            )
        try:
            handler = point.load()
        except (ImportError, AttributeError) as error:
            raise Misconfigured(
                f"the handler of job type {point.name!r} cannot be loaded from {point.value}:"
                f" {error}; mend or uninstall its package"
            ) from error
        if not callable(handler):
            raise Misconfigured(
                f"the handler of job type {point.name!r} ({point.value}) is no function"
            )
        found[point.name] = handler
    return MappingProxyType(found)
