"""The artifact store: a file is there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from broker import files
from broker.errors import ArtifactNotFound, ArtifactTooLarge, DigestMismatch, StorageFull
from broker.files import ArtifactStore
from broker.records import StoredFile

BYTES = bytes(range(256)) * 3000
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
EMPTY = hashlib.sha256().hexdigest()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "when" / "needed"


@pytest.fixture
def store(folder: Path) -> ArtifactStore:
    return ArtifactStore(folder)


def put(store: ArtifactStore, content: bytes, **more: str) -> StoredFile:
    return store.receive(io.BytesIO(content), max_bytes=len(BYTES), **more)


def found(folder: Path) -> list[str]:
    """Name every file but the lock."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    )


def age(path: Path) -> None:
    os.utime(path, (LONG_AGO.timestamp(),) * 2)


@pytest.mark.parametrize("content", [b"", b"x", BYTES])
def test_what_is_received_is_what_is_opened(store: ArtifactStore, folder: Path, content: bytes):
    stored = put(store, content, expected_digest=digest(content))
    assert stored.digest == digest(content)
    assert stored.size_bytes == len(content)
    with store.open(stored.storage_path) as file:
        assert file.read() == content
    assert found(folder) == [stored.storage_path]


def test_the_path_is_made_of_the_digest_and_nothing_else(store: ArtifactStore):
    assert put(store, b"").storage_path == f"sha256/{EMPTY[:2]}/{EMPTY}"


def test_the_store_is_for_its_owners_eyes(store: ArtifactStore, folder: Path):
    stored = put(store, b"x")
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in (stored.storage_path, "lock")}
    assert modes == {0o600}
    parents = [folder, folder / "tmp", folder / "sha256", (folder / stored.storage_path).parent]
    assert {stat.S_IMODE(one.stat().st_mode) for one in parents} == {0o700}


def test_a_folder_that_was_given_to_a_group_is_the_groups_all_through(tmp_path: Path):
    folder = tmp_path / "given"
    folder.mkdir()
    folder.chmod(0o2770)
    before = os.umask(0o007)
    try:
        stored = put(ArtifactStore(folder), b"x")
    finally:
        os.umask(before)
    # who is in the group may remove files, and see that nobody receives them meanwhile
    parents = [folder, folder / "tmp", folder / "sha256", (folder / stored.storage_path).parent]
    assert {stat.S_IMODE(one.stat().st_mode) for one in parents} == {0o2770}
    assert stat.S_IMODE((folder / "lock").stat().st_mode) == 0o660


def test_the_same_bytes_again_are_the_same_file(store: ArtifactStore, folder: Path):
    assert put(store, BYTES) == put(store, BYTES)
    assert len(found(folder)) == 1


def test_a_damaged_file_is_healed_when_its_bytes_come_again(store: ArtifactStore, folder: Path):
    stored = put(store, BYTES)
    (folder / stored.storage_path).write_bytes(b"cut")
    put(store, BYTES)
    assert (folder / stored.storage_path).read_bytes() == BYTES


def test_uploads_of_the_same_bytes_at_once_all_succeed(store: ArtifactStore, folder: Path):
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: put(store, BYTES), range(32)))
    assert len(set(map(repr, stored))) == 1
    assert found(folder) == [stored[0].storage_path]
    assert (folder / stored[0].storage_path).read_bytes() == BYTES


@pytest.mark.parametrize(
    "announced",
    [
        digest(b"other"),
        digest(b"x").upper(),
        digest(b"x").replace("sha256:", ""),
        digest(b"x").replace("sha256", "md5"),
        digest(b"x")[:-1],
        f"{digest(b'x')} ",
        f"{digest(b'x')}\n",
        "",
        "sha256:../../../etc/passwd",
    ],
)
def test_bytes_that_are_not_those_announced_leave_nothing(
    store: ArtifactStore, folder: Path, announced: str
):
    with pytest.raises(DigestMismatch):
        put(store, b"x", expected_digest=announced)
    assert found(folder) == []


def test_a_file_as_large_as_allowed_is_taken_and_one_byte_more_is_not(
    store: ArtifactStore, folder: Path
):
    assert store.receive(io.BytesIO(b"12345"), max_bytes=5).size_bytes == 5
    with pytest.raises(ArtifactTooLarge, match="5 bytes"):
        store.receive(io.BytesIO(b"123456"), max_bytes=5)
    assert found(folder) == [f"sha256/{digest(b'12345')[7:9]}/{digest(b'12345')[7:]}"]


class Endless:
    """A stream that never ends, and counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        """Return as much as asked for."""
        self.taken += size
        return bytes(size)


def test_an_endless_stream_is_read_no_further_than_needed(store: ArtifactStore, folder: Path):
    stream = Endless()
    with pytest.raises(ArtifactTooLarge):
        store.receive(stream, max_bytes=1_000_000)
    assert stream.taken == 1_000_001
    assert found(folder) == []


def test_large_files_are_read_in_small_bites(store: ArtifactStore):
    bites: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            bites.append(size or 0)
            return super().read(size)

    store.receive(Watched(BYTES), max_bytes=10**9)
    assert set(bites) == {files.CHUNK_BYTES}


def test_a_stream_that_breaks_leaves_nothing_and_keeps_its_own_error(
    store: ArtifactStore, folder: Path
):
    class Broken:
        def __init__(self) -> None:
            self.bites = iter([b"x" * 10])

        def read(self, _size: int, /) -> bytes:
            for bite in self.bites:
                return bite
            raise OSError(errno.ENOSPC, "the client's disk, not ours")

    with pytest.raises(OSError, match="the client's disk"):
        store.receive(Broken(), max_bytes=100)
    assert found(folder) == []


@pytest.mark.parametrize("failing", ["write", "fsync", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(
    store: ArtifactStore,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    number: int,
):
    kept = put(store, b"before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    class Full:
        """A file whose disk is full."""

        def __init__(self, number: int) -> None:
            self.number = number
            self.write = fail

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.number)

    if failing == "write":
        monkeypatch.setattr(files.os, "fdopen", lambda number, *_, **__: Full(number))
    elif failing == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, failing, fail)
    with pytest.raises(StorageFull, match=os.strerror(number)):
        put(store, BYTES)
    monkeypatch.undo()
    assert found(folder) == [kept.storage_path]
    assert put(store, BYTES).size_bytes == len(BYTES)


def test_a_fault_of_the_machine_is_not_called_a_full_disk(
    store: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_number: int) -> None:
        raise OSError(errno.EIO, "bad block")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="bad block"):
        put(store, BYTES)
    assert found(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 1 MiB, which only root can make."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("at home: a small disk can only be mounted by root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"at home: no disk may be mounted here ({made.stderr.strip()})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_takes_no_more_and_serves_on(small_disk: Path):
    store = ArtifactStore(small_disk)
    kept = put(store, b"small")
    with pytest.raises(StorageFull):
        store.receive(io.BytesIO(bytes(2**21)), max_bytes=2**22)
    assert found(small_disk) == [kept.storage_path]
    assert put(store, b"as small").size_bytes == 8


@pytest.mark.parametrize(
    "path",
    [
        "",
        "lock",
        "../../etc/passwd",
        "/etc/passwd",
        f"sha256/{EMPTY[:2]}/{EMPTY}",
        f"sha256/00/{EMPTY}",
        f"sha256/{EMPTY[:2]}/../{EMPTY[:2]}/{EMPTY}",
        f"sha256/{EMPTY[:2]}/{EMPTY}\n",
        f"sha256/{EMPTY[:2].upper()}/{EMPTY.upper()}",
        f"sha256/{EMPTY[:2]}/{EMPTY}\x00",
    ],
)
def test_paths_that_are_not_there_or_not_ours_are_not_found(store: ArtifactStore, path: str):
    put(store, b"x")
    with pytest.raises(ArtifactNotFound):
        store.open(path)
    assert not store.discard(path, before=datetime.now(UTC) + timedelta(days=1))


def test_a_crash_in_mid_upload_leaves_a_part_that_the_sweep_removes(
    store: ArtifactStore, folder: Path
):
    script = """
import os, signal, sys
from pathlib import Path
from broker.files import ArtifactStore

class Killer:
    def __init__(self):
        self.bites = 0
    def read(self, size):
        self.bites += 1
        if self.bites == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return b"x" * size

ArtifactStore(Path(sys.argv[1])).receive(Killer(), max_bytes=10**9)
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, timeout=30)
    assert done.returncode == -9
    (part,) = found(folder)
    assert part.startswith("tmp/")
    assert (folder / part).stat().st_size == 2 * files.CHUNK_BYTES
    assert store.sweep(before=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert found(folder) == [part]
    assert store.sweep(before=datetime.now(UTC) + timedelta(hours=1)) == 1
    assert found(folder) == []
    assert store.sweep(before=datetime.now(UTC) + timedelta(hours=1)) == 0


def test_a_sweep_of_nothing_is_no_error(store: ArtifactStore):
    assert store.sweep(before=datetime.now(UTC)) == 0
    assert list(store.stored(before=datetime.now(UTC))) == []
    assert not store.discard(f"sha256/{EMPTY[:2]}/{EMPTY}", before=datetime.now(UTC))


def test_files_are_discarded_once_they_are_old(store: ArtifactStore, folder: Path):
    old, new = put(store, b"old"), put(store, b"new")
    age(folder / old.storage_path)
    day_ago = datetime.now(UTC) - timedelta(days=1)
    assert list(store.stored(before=day_ago)) == [old.storage_path]
    assert not store.discard(new.storage_path, before=day_ago)
    assert store.discard(old.storage_path, before=day_ago)
    assert not store.discard(old.storage_path, before=day_ago)
    assert found(folder) == [new.storage_path]


def test_a_file_received_again_just_before_it_is_discarded_stays(
    store: ArtifactStore, folder: Path
):
    old = put(store, b"old")
    age(folder / old.storage_path)
    day_ago = datetime.now(UTC) - timedelta(days=1)
    (chosen,) = store.stored(before=day_ago)
    put(store, b"old")
    assert not store.discard(chosen, before=day_ago)
    assert found(folder) == [old.storage_path]


def test_who_reads_a_file_that_is_discarded_reads_it_to_its_end(store: ArtifactStore, folder: Path):
    stored = put(store, BYTES)
    age(folder / stored.storage_path)
    with store.open(stored.storage_path) as file:
        assert store.discard(stored.storage_path, before=datetime.now(UTC))
        assert file.read() == BYTES
