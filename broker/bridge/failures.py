"""Which exception an orchestrator sees for a failed job (decision 17).

Result backends keep a class by module and name, and the reader looks it up again, so a class that
is not imported here is as good as one that is: only its name travels. ``errorType`` comes from a
remote worker and is not trusted: a name that would end the reader (``SystemExit``), steer it
(``celery.exceptions.Retry``) or is no exception at all (``os.system``) is told as a
``drawbridge.RemoteJobError`` instead.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Mapping
from typing import Final

from celery.exceptions import (
    InvalidTaskError,
    TaskPredicate,
    TaskRevokedError,
    WorkerLostError,
)

from broker.effects import REMOTE_ERROR
from broker.records import Json

#: module under which our own error travels; no such module exists, so nothing can be shadowed
MODULE: Final = "drawbridge"

_NAME: Final = re.compile(r"[A-Za-z_]\w{0,63}(\.[A-Za-z_]\w{0,63}){0,9}", re.ASCII)
_KNOWN: Final = {one.__name__: one for one in (InvalidTaskError, WorkerLostError)}


class RemoteJobError(Exception):
    """A job failed on its worker; readers see it as ``drawbridge.RemoteJobError``."""


RemoteJobError.__module__ = MODULE


def failure(error: Mapping[str, Json]) -> Exception:
    """Return the exception that an outbox row's ``error`` stands for."""
    name, message = str(error.get("type") or REMOTE_ERROR), str(error.get("message") or "")
    if name == REMOTE_ERROR:
        return RemoteJobError(message)
    found = _class(name)
    if found is None:
        return RemoteJobError(f"{name}: {message}")
    try:
        made = found(message)
    except Exception:  # noqa: BLE001  somebody else's constructor, with arguments it did not ask for
        return _stand_in(found.__module__, found.__qualname__)(message)
    # what travels is the class and ``args``; a constructor may have made something else of them
    return made if made.args == (message,) else _stand_in(type(made).__module__, name)(message)


def revocation(reason: str) -> TaskRevokedError:
    """Return the exception that stands for a cancelled or expired job."""
    return TaskRevokedError(reason)


def _class(name: str) -> type[Exception] | None:
    """Return the class a name stands for, made up when nobody imported one; None when refused."""
    if not _NAME.fullmatch(name):
        return None
    module, _, short = name.rpartition(".")
    if not module:
        found = _KNOWN.get(short) or getattr(builtins, short, None)
        if found is None:
            return _stand_in(MODULE, short)
        return _checked(found)
    held = sys.modules.get(module)
    if held is None or not hasattr(held, short):
        return _stand_in(module, short)
    return _checked(getattr(held, short))


def _checked(found: object) -> type[Exception] | None:
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    # Retry, Ignore and Reject steer the task that reads the result
    return None if issubclass(found, TaskPredicate) else found


def _stand_in(module: str, qualname: str) -> type[Exception]:
    short = qualname.rpartition(".")[2]
    return type(short, (Exception,), {"__module__": module, "__qualname__": short})
