"""What both stores of files promise, a folder and a bucket; and what a bucket is besides."""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker.bucket import BucketStore, Place
from broker.errors import (
    ArtifactNotFound,
    ArtifactTooLarge,
    ConfigurationError,
    DigestMismatch,
    InvalidPayload,
    StorageAway,
)
from broker.files import CHUNK_BYTES, ArtifactStore
from broker.settings import StoreSettings
from broker.storage import artifact_store
from tests.buckets import CREDENTIALS, S3
from tests.services import free_port

BYTES = bytes(range(256)) * 5000
DIGEST = "sha256:" + hashlib.sha256(BYTES).hexdigest()
FIRST = date(2026, 1, 5)
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Give the session's S3."""
    server = S3().start()
    yield server
    server.remove()


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of a new bucket, and the credentials for it."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(NUMBERS)}"
    s3.client().create_bucket(Bucket=name)
    return f"s3://{name}/our/files?endpoint={s3.url}"


@pytest.fixture
def today() -> list[date]:
    """Give the day on which it is."""
    return [FIRST]


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, today: list[date]) -> ArtifactStore:
    """Give each store there is."""
    if request.param == "folder":
        return ArtifactStore(tmp_path / "files")
    place = Place.parse(request.getfixturevalue("bucket"))
    return BucketStore(place, staging=tmp_path / "staging", today=lambda: today[0])


class Drip:
    """A stream that is never held whole, and knows how it was read."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.largest = 0

    def read(self, size: int, /) -> bytes:
        self.largest = max(self.largest, size)
        block = bytes(min(size, self.left))
        self.left -= len(block)
        return block


def put(store: ArtifactStore, data: bytes = BYTES, **more: Any) -> str:
    return store.receive(io.BytesIO(data), max_bytes=2**21, **more).storage_path


def content(store: ArtifactStore, path: str) -> bytes:
    with store.open(path) as file:
        return file.read()


def test_what_goes_in_comes_out(store: ArtifactStore, tmp_path: Path) -> None:
    kept = store.receive(io.BytesIO(BYTES), max_bytes=len(BYTES), expected_digest=DIGEST)
    assert (kept.digest, kept.size_bytes) == (DIGEST, len(BYTES))
    assert DIGEST.removeprefix("sha256:") in kept.storage_path
    assert content(store, kept.storage_path) == BYTES
    assert put(store) == kept.storage_path, "the same bytes are the same file"
    assert put(store, b"") != kept.storage_path
    assert content(store, put(store, b"")) == b""
    assert not list(tmp_path.glob("*/tmp/*"))
    store.probe()


def test_a_part_of_it_is_read_from_its_middle(store: ArtifactStore) -> None:
    with store.open(put(store)) as file:
        assert file.seekable()
        file.seek(600_001)
        assert file.read(10) == BYTES[600_001:600_011]
        file.seek(0)
        assert file.read(3) == BYTES[:3]
        file.seek(-5, io.SEEK_END)
        assert file.read() == BYTES[-5:]
        assert file.read(1) == b""


def test_nothing_is_kept_of_what_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch):
        put(store, expected_digest="sha256:" + "0" * 64)
    with pytest.raises(ArtifactTooLarge):
        store.receive(io.BytesIO(BYTES), max_bytes=len(BYTES) - 1)
    later = datetime.now(UTC) + timedelta(days=9)
    assert list(store.stored(before=later)) == []
    assert not list(tmp_path.glob("*/tmp/*"))


def test_a_large_file_is_never_held(store: ArtifactStore) -> None:
    drip = Drip(20 * 2**20)
    kept = store.receive(drip, max_bytes=2**30)
    assert (kept.size_bytes, drip.largest) == (20 * 2**20, CHUNK_BYTES)
    with store.open(kept.storage_path) as file:
        sizes = {len(block) for block in iter(lambda: file.read(CHUNK_BYTES), b"")}
    assert sizes == {CHUNK_BYTES}


@pytest.mark.parametrize(
    "path", ["", "x", "../x", "/etc/passwd", "sha256/ab", "sha256/" + "0" * 64 + "/20260101",
             "sha256/00/" + "0" * 64, f"parts/{uuid4()}/1." + "0" * 64, "our/files/x"],
)  # fmt: skip
def test_what_is_not_there_or_not_ours(store: ArtifactStore, path: str) -> None:
    with pytest.raises(ArtifactNotFound):
        store.open(path)
    assert not store.discard(path, before=datetime.now(UTC) + timedelta(days=9))


def test_parts_are_kept_apart_until_they_go(store: ArtifactStore) -> None:
    upload, half = str(uuid4()), len(BYTES) // 2
    halves = [BYTES[:half], BYTES[half:]]
    parts = [(n, "sha256:" + hashlib.sha256(data).hexdigest()) for n, data in enumerate(halves, 1)]
    for (number, digest), data in zip(parts, halves, strict=True):
        for _ in range(2):
            store.receive_part(
                io.BytesIO(data), upload=upload, number=number, size=half, digest=digest
            )
    with pytest.raises(InvalidPayload):
        store.receive_part(io.BytesIO(b""), upload=upload, number=3, size=1,
                           digest="sha256:" + hashlib.sha256(b"").hexdigest())  # fmt: skip
    with store.joined(upload, parts) as whole:
        kept = store.receive(whole, max_bytes=len(BYTES), expected_digest=DIGEST)
    later = datetime.now(UTC) + timedelta(days=9)
    assert list(store.stored(before=later)) == [kept.storage_path]
    assert list(store.uploads(before=later)) == [upload]
    assert list(store.uploads(before=datetime.now(UTC) - timedelta(days=1))) == []
    store.drop_part(upload, number=2, digest=parts[1][1])
    with pytest.raises(ArtifactNotFound), store.joined(upload, parts) as whole:
        store.receive(whole, max_bytes=len(BYTES))
    for _ in range(2):
        store.drop_upload(upload)
    assert list(store.uploads(before=later)) == []
    assert content(store, kept.storage_path) == BYTES


def test_old_files_are_named_and_go(store: ArtifactStore) -> None:
    path = put(store)
    now = datetime.now(UTC)
    assert list(store.stored(before=now - timedelta(days=2))) == []
    assert not store.discard(path, before=now - timedelta(days=2))
    assert content(store, path) == BYTES
    later = now + timedelta(days=2)
    assert list(store.stored(before=later)) == [path]
    assert store.discard(path, before=later)
    assert not store.discard(path, before=later)
    with pytest.raises(ArtifactNotFound):
        store.open(path)


def test_bytes_that_come_again_another_day_are_another_object(
    bucket: str, tmp_path: Path, today: list[date]
) -> None:
    store = BucketStore(Place.parse(bucket), staging=tmp_path, today=lambda: today[0])
    first = put(store)
    today[0] += timedelta(days=1)
    second = put(store)
    assert first != second
    # an orphan's removal can never meet the bytes of whoever sends them now
    assert store.discard(first, before=datetime.now(UTC) + timedelta(days=2))
    assert content(store, second) == BYTES


def test_files_copied_from_a_folder_are_served(bucket: str, tmp_path: Path, s3: S3) -> None:
    folder = ArtifactStore(tmp_path / "old")
    path = put(folder)
    place = Place.parse(bucket)
    s3.client().put_object(Bucket=place.bucket, Key=f"our/files/{path}", Body=BYTES)
    assert content(BucketStore(place, staging=tmp_path / "new"), path) == BYTES


@pytest.mark.parametrize(
    "use", [lambda one: one.probe(), put, lambda one: one.open(f"sha256/{'0' * 64}/20260101"),
            lambda one: list(one.stored(before=datetime.now(UTC)))],
    ids=["probe", "put", "get", "list"],
)  # fmt: skip
def test_a_bucket_that_is_away_or_closed(
    bucket: str, tmp_path: Path, use: Callable[[BucketStore], object]
) -> None:
    place = Place.parse(bucket)
    dead = Place(place.bucket, place.prefix, f"http://127.0.0.1:{free_port()}", None)
    with pytest.raises(StorageAway):
        use(BucketStore(dead, staging=tmp_path))
    other = Place("never-made", "", place.endpoint, None)
    with pytest.raises(StorageAway, match="NoSuchBucket"):
        use(BucketStore(other, staging=tmp_path))
    assert not list(tmp_path.glob("tmp/*"))


@pytest.mark.parametrize(
    "url", ["s3://", "s3://Bucket/x", "https://b/x", "s3://b/x", "s3://bucket?endpoint=b",
            "s3://key:secret@bucket/x", "s3://bucket/x?acl=public", "s3://bucket/x#y", "bucket"],
)  # fmt: skip
def test_addresses_of_no_bucket(url: str, tmp_path: Path) -> None:
    settings = StoreSettings(
        database_url="sqlite://", reservations_url="x", artifacts_dir=tmp_path, artifacts_url=url
    )
    with pytest.raises(ConfigurationError) as refused:
        artifact_store(settings)
    assert "secret" not in str(refused.value)


def test_the_address_says_which_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"DRAWBRIDGE_ARTIFACTS_DIR": str(tmp_path)}
    assert str(artifact_store(StoreSettings.from_env(env))) == str(tmp_path)
    env["DRAWBRIDGE_ARTIFACTS_URL"] = "s3://bucket/a/b/?endpoint=https://s3.example&region=here"
    assert Place.parse(env["DRAWBRIDGE_ARTIFACTS_URL"]).region == "here"
    store = artifact_store(StoreSettings.from_env(env))
    assert str(store) == "s3://bucket/a/b/ at https://s3.example"
