"""What bytes are read from, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, Protocol, Self


class Stream(Protocol):
    """Anything bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""


class Joined:
    """Several files read as one, each opened when its turn comes."""

    def __init__(self, openers: Iterable[Callable[[], BinaryIO]]) -> None:
        self._openers = iter(openers)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        while True:
            if self._file is not None:
                if chunk := self._file.read(size):
                    return chunk
                self._file.close()
            opener = next(self._openers, None)
            if opener is None:
                return b""
            self._file = opener()
