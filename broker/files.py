"""The only one to know how stored files lie on the disk, and how they get there whole.

A file's path is made of its own sha256 and of nothing a client says. It appears under that path
only when all its bytes are on the disk, so that whoever finds it finds it complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from broker.errors import (
    ArtifactNotFound,
    ArtifactTooLarge,
    DigestMismatch,
    InvalidPayload,
    StorageAway,
    StorageFull,
)
from broker.records import StoredFile
from broker.streams import Joined, Stream

CHUNK_BYTES: Final = 256 * 1024

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PATH: Final = re.compile(r"sha256/([0-9a-f]{2})/\1[0-9a-f]{62}")
UPLOAD_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PART_PATH: Final = re.compile(rf"parts/{UPLOAD_ID.pattern}/[0-9]{{1,4}}\.[0-9a-f]{{64}}")
_LEFTOVER: Final = "*.part"
#: what a full or read-only disk says; anything else is a fault of the machine and stays one
_FULL: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM},
)


class ArtifactStore:
    """A folder of immutable files, named by their content; any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmp = folder / "tmp"

    def __str__(self) -> str:
        return str(self._folder)

    def probe(self) -> None:
        """Ask whether files may be stored.

        Raises:
            StorageAway: they may not.
        """
        there = next(one for one in (self._folder, *self._folder.parents) if one.exists())
        if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
            raise StorageAway(f"{there} cannot be written")

    def receive(
        self,
        stream: Stream,
        *,
        max_bytes: int,
        expected_digest: str | None = None,
    ) -> StoredFile:
        """Store what the stream holds; the same bytes again are the same file.

        Raises:
            DigestMismatch: the bytes are not those announced, or the announcement is no sha256.
            ArtifactTooLarge: more bytes than allowed.
            StorageFull: the disk takes no more.
        """
        with self._taken(stream, max_bytes, expected_digest) as (path, digest, size):
            hashed = digest.removeprefix("sha256:")
            storage_path = self._path_of(hashed)
            self._keep(path, storage_path, hashed=hashed)
        return StoredFile(digest=digest, size_bytes=size, storage_path=storage_path)

    def receive_part(
        self, stream: Stream, *, upload: str, number: int, size: int, digest: str
    ) -> None:
        """Store a part of an upload, which must weigh exactly ``size``.

        Raises:
            InvalidPayload: it weighs less.
            ArtifactNotFound: the upload was forgotten just now.
        """
        with self._taken(stream, size, digest) as (path, _, got):
            if got != size:
                raise InvalidPayload(f"This part has {size} bytes")
            try:
                self._keep(
                    path,
                    self._part_path(upload, number, digest),
                    hashed=digest.removeprefix("sha256:"),
                )
            except FileNotFoundError:
                raise ArtifactNotFound("This lease has no such upload") from None

    def joined(self, upload: str, parts: Iterable[tuple[int, str]]) -> Joined:
        """Return the parts of an upload as one stream, to be read and closed."""
        return Joined([partial(self.open, self._part_path(upload, *part)) for part in parts])

    def drop_part(self, upload: str, *, number: int, digest: str) -> None:
        """Remove a part that came second."""
        (self._folder / self._part_path(upload, number, digest)).unlink(missing_ok=True)

    def drop_upload(self, upload: str) -> None:
        """Remove all parts of an upload."""
        if UPLOAD_ID.fullmatch(upload):
            shutil.rmtree(self._folder / "parts" / upload, ignore_errors=True)

    def uploads(self, *, before: datetime) -> Iterator[str]:
        """Name the uploads that got no part since that moment."""
        for folder in self._folder.glob("parts/*"):
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime < before.timestamp():
                    yield folder.name

    def open(self, storage_path: str) -> BinaryIO:
        """Open a stored file for reading.

        Raises:
            ArtifactNotFound: it is not there, or the path is none of ours.
        """
        if not (_PATH.fullmatch(storage_path) or PART_PATH.fullmatch(storage_path)):
            raise ArtifactNotFound
        try:
            return (self._folder / storage_path).open("rb")
        except FileNotFoundError:
            raise ArtifactNotFound from None

    def sweep(self, *, before: datetime) -> int:
        """Remove what uploads cut short by a crash left before that moment; return how many."""
        removed = 0
        for part in self._tmp.glob(_LEFTOVER):
            # An upload that ends just now takes its file away itself.
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < before.timestamp():
                    part.unlink()
                    removed += 1
        return removed

    def stored(self, *, before: datetime) -> Iterator[str]:
        """Name the files that were last received before that moment."""
        for file in self._folder.glob("sha256/*/*"):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < before.timestamp():
                    yield file.relative_to(self._folder).as_posix()

    def discard(self, storage_path: str, *, before: datetime) -> bool:
        """Remove a file that no job names any more; False when it was received again since."""
        if not _PATH.fullmatch(storage_path):
            return False
        file = self._folder / storage_path
        try:
            with self._locked():
                if file.stat().st_mtime >= before.timestamp():
                    return False
                file.unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _taken(
        self, stream: Stream, max_bytes: int, expected_digest: str | None
    ) -> Iterator[tuple[Path, str, int]]:
        """Take a stream's bytes to the disk, for good, and give their path, digest and size."""
        if expected_digest is not None and not _DIGEST.fullmatch(expected_digest):
            raise DigestMismatch("digest must be sha256: and 64 lower-case hex digits")
        with self._part() as (part, path):
            hashed, size = self._copy(stream, part, max_bytes)
            digest = f"sha256:{hashed}"
            if expected_digest not in (None, digest):
                raise DigestMismatch
            with _on_our_disk():
                part.flush()
                os.fsync(part.fileno())
            yield path, digest, size

    @contextmanager
    def _part(self) -> Iterator[tuple[BinaryIO, Path]]:
        with _on_our_disk():
            self._make(self._tmp)
            number, name = tempfile.mkstemp(suffix=_LEFTOVER[1:], dir=self._tmp)
        path = Path(name)
        try:
            # Unbuffered: what cannot be written fails here, not when the file is closed.
            with os.fdopen(number, "wb", buffering=0) as part:
                yield part, path
        finally:
            path.unlink(missing_ok=True)

    @staticmethod
    def _copy(stream: Stream, part: BinaryIO, max_bytes: int) -> tuple[str, int]:
        hashed, size = hashlib.sha256(), 0
        while chunk := stream.read(min(CHUNK_BYTES, max_bytes - size + 1)):
            size += len(chunk)
            if size > max_bytes:
                raise ArtifactTooLarge(f"The artifact is larger than {max_bytes} bytes")
            hashed.update(chunk)
            rest = memoryview(chunk)
            while rest:
                with _on_our_disk():
                    rest = rest[part.write(rest) :]
        return hashed.hexdigest(), size

    def _path_of(self, hashed: str) -> str:
        return f"sha256/{hashed[:2]}/{hashed}"

    @staticmethod
    def _part_path(upload: str, number: int, digest: str) -> str:
        return f"parts/{upload}/{number}.{digest.removeprefix('sha256:')}"

    def _keep(self, staged: Path, storage_path: str, *, hashed: str) -> None:  # noqa: ARG002
        """Bring bytes that are whole to where they stay."""
        with _on_our_disk():
            self._settle(staged, self._folder / storage_path)

    def _settle(self, part: Path, file: Path) -> None:
        fresh = not file.parent.is_dir()
        self._make(file.parent.parent, file.parent)
        with self._locked():
            # A file already there is replaced by its equal: that renews its age, and heals it.
            part.replace(file)
        _sync_folder(file.parent)
        if fresh:
            _sync_folder(file.parent.parent)
            _sync_folder(self._folder)

    def _make(self, *folders: Path) -> None:
        # One by one: what mkdir makes on the way to another folder is open to everyone.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in folders:
            folder.mkdir(mode=0o700 | self._shared, parents=True, exist_ok=True)

    @property
    def _shared(self) -> int:
        """What the group may: edge and bridge are two users of one folder, and prune removes files.

        Nothing, unless the folder was given to a group by whoever made it.
        """
        return self._folder.stat().st_mode & 0o070

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the look at a file's age and its removal together, against other processes too."""
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        number = os.open(self._folder / "lock", how, 0o600 | self._shared & 0o060)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _on_our_disk() -> Iterator[None]:
    """Translate a full disk; around our own calls only, for the stream has errors of its own."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(f"The artifact store takes no more: {error.strerror}") from error
