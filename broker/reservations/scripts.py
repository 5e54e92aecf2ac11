"""How the Lua scripts are loaded and called, and how their words become exceptions."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError, ResponseError

from broker.errors import GenerationMoved, IndexDamaged, ReservationsUnavailable

NAMES: Final = (
    "admit",
    "drop",
    "reserve",
    "confirm",
    "renew",
    "due",
    "promote",
    "heads",
    "publish",
    "fill",
    "mend",
)
#: what Redis says of a key that somebody else has written
_NOT_ITS_OWN: Final = ("WRONGTYPE ", "value is not an integer")
#: those that look for the best ready job
SEEKERS: Final = frozenset({"reserve", "heads"})


class LanesMoved(Exception):
    """The lane table has grown since the caller matched against it."""


def source(name: str, *, shebang: bool = True) -> str:
    """Return a script's text: its own ``#!lua`` line first, then the prelude, then its body."""
    folder = files("broker.reservations") / "lua"
    prelude = (folder / "_prelude.lua").read_text()
    if name in SEEKERS:
        prelude += (folder / "_heads.lua").read_text()
    body = (folder / f"{name}.lua").read_text()
    first, _, rest = body.partition("\n")
    if first.startswith("#!"):
        return f"{first}\n{prelude}{rest}" if shebang else prelude + rest
    return f"#!lua\n{prelude}{body}" if shebang else prelude + body


class Scripts:
    """The scripts on one client; ``shebang=False`` for fakeredis, which refuses that line."""

    def __init__(self, client: redis.Redis, *, shebang: bool = True) -> None:
        """Register them; nothing is sent before the first call."""
        self._scripts = {
            name: client.register_script(source(name, shebang=shebang)) for name in NAMES
        }

    def call(self, name: str, keys: list[str], args: list[Any]) -> Any:
        """Run a script once.

        Raises:
            GenerationMoved: the caller's generation is not the one that counts.
            LanesMoved: see reserve.lua.
            ReservationsUnavailable: Redis refused it for its own reasons (memory, loading, role).
        """
        try:
            return self._scripts[name](keys=keys, args=args)
        except NoScriptError as error:
            raise ReservationsUnavailable from error
        except ResponseError as error:
            word = str(error).partition(" ")[0]
            if word == "GEN":
                raise GenerationMoved from None
            if word == "LANES":
                raise LanesMoved from None
            raise refusal(error, f"Redis refused {name}") from error


def refusal(error: ResponseError, said: str) -> ReservationsUnavailable:
    """Tell a key that is not of its type from all for which Redis may refuse a call."""
    damaged = any(word in str(error) for word in _NOT_ITS_OWN)
    return (IndexDamaged if damaged else ReservationsUnavailable)(f"{said}: {error}")
