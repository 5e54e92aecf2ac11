"""The job types this worker runs. A new one is a function and a line here."""

from collections.abc import Mapping
from types import MappingProxyType

from remote_worker.handlers.codex_exec import codex_exec
from remote_worker.handlers.context import Handler

HANDLERS: Mapping[str, Handler] = MappingProxyType({"codex_exec": codex_exec})
