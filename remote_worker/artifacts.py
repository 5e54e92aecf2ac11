"""The files a job brings back: sealed by a digest, sent without ever being held in memory."""

import hashlib
import io
import os
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished file."""

    name: str
    path: Path
    size: int
    #: `sha256:<hex>`
    digest: str
    content_type: str = "text/plain; charset=utf-8"


def is_file(path: Path) -> bool:
    """Say whether a file is there to be sealed: the link an agent left in its place is none."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def seal(name: str, path: Path) -> Artifact:
    """Return a file as an artifact, on the disk for good."""
    digest = hashlib.sha256()
    size = 0
    # The path is ours and the agent is gone, but it had our uid: follow no link it may have left.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
        os.fsync(file.fileno())
    return Artifact(name=name, path=path, size=size, digest=f"sha256:{digest.hexdigest()}")


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""


class Part:
    """A part of an artifact's file, open where it begins; its digest is known before it is sent."""

    def __init__(self, artifact: Artifact, *, number: int, part_bytes: int) -> None:
        self.number = number
        self._begin = (number - 1) * part_bytes
        self.size = min(part_bytes, artifact.size - self._begin)
        self._file = artifact.path.open("rb")
        self._left = 0

    def __enter__(self) -> Self:
        return self.again()

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def again(self) -> Self:
        """Go back to where it begins."""
        self._file.seek(self._begin)
        self._left = self.size
        return self

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at its end."""
        block = self._file.read(min(size, self._left))
        self._left -= len(block)
        return block

    def digest(self) -> str:
        """Return `sha256:<hex>` of it."""
        digest = hashlib.sha256()
        while block := self.read(_BLOCK):
            digest.update(block)
        self.again()
        return f"sha256:{digest.hexdigest()}"


class MultipartBody:
    """A multipart body around one file, read piece by piece by the HTTP client."""

    def __init__(self, fields: Mapping[str, str], *, file: Readable, size: int) -> None:
        boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        # The name of the part is a label for people; the artifact's name is a field.
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        )
        head = "".join(parts).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        self._length = len(head) + size + len(tail)
        self._readers: list[Readable] = [io.BytesIO(head), file, io.BytesIO(tail)]

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = _BLOCK) -> bytes:
        """Return the next piece, empty at the end."""
        while self._readers:
            if block := self._readers[0].read(size):
                return block
            self._readers.pop(0)
        return b""
