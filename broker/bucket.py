"""The only one to know S3: stored files are objects of a bucket, received on this disk first.

Nothing is ever held whole in memory: bytes are hashed into the staging folder, and only what is
whole and verified goes on to the bucket, which verifies its digest once more.

Objects cannot be looked at and removed in one step, so one that is old might be removed just when
its bytes come again. Therefore the day belongs to a key: the same bytes share one object for a day,
and what is removed is of a day on which nobody writes any more.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from broker.errors import ArtifactNotFound, ConfigurationError, StorageAway, StorageFull
from broker.files import CHUNK_BYTES, PART_PATH, UPLOAD_ID, ArtifactStore

log = logging.getLogger(__name__)

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY: Final = re.compile(r"sha256/(?P<hex>[0-9a-f]{64})/(?P<day>[0-9]{8})")
#: files that were copied here from a folder keep their paths
_COPIED: Final = re.compile(r"sha256/([0-9a-f]{2})/\1[0-9a-f]{62}")
_DAY: Final = "%Y%m%d"
_MISSING: Final = frozenset({"NoSuchKey", "NotFound", "404"})
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
#: what boto says below this may hold requests with their signatures
_LOGGERS: Final = ("boto3", "botocore", "urllib3")
_CONFIG: Final = Config(
    connect_timeout=3,
    read_timeout=20,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=64,
    # Others than Amazon do not know all of its newer checksums; ours is sent by itself.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is; credentials come as boto finds them, and never from here."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``s3://bucket/prefix?endpoint=https://…&region=…``.

        Raises:
            ConfigurationError: it is no such URL, or holds a credential.
        """
        parts = urlsplit(url)
        asked = parse_qs(parts.query, keep_blank_values=True)
        if "@" in parts.netloc:
            raise ConfigurationError(
                "DRAWBRIDGE_ARTIFACTS_URL holds no credentials; give them as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or in AWS_SHARED_CREDENTIALS_FILE"
            )
        endpoint = asked.pop("endpoint", [None])[-1]
        region = asked.pop("region", [None])[-1]
        good = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and not parts.fragment
        if not good or asked or (endpoint and not endpoint.startswith(("https://", "http://"))):
            raise ConfigurationError(
                "DRAWBRIDGE_ARTIFACTS_URL must look like "
                "s3://bucket/prefix?endpoint=https://host&region=name"
            )
        prefix = parts.path.strip("/")
        return cls(parts.netloc, f"{prefix}/" if prefix else "", endpoint or None, region or None)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (
            f" at {self.endpoint}" if self.endpoint else ""
        )


class BucketStore(ArtifactStore):
    """A bucket of immutable files, named by their content; any number of processes may share it."""

    def __init__(
        self,
        place: Place,
        *,
        staging: Path,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        """Reach nothing yet; what comes in passes through the folder ``staging``."""
        super().__init__(staging)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._place = place
        self._today = today
        self._client: Any = boto3.session.Session().client(
            "s3", endpoint_url=place.endpoint, region_name=place.region or "us-east-1",
            config=_CONFIG,
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self._place)

    def probe(self) -> None:
        """Ask whether the bucket is there for us.

        Raises:
            StorageAway: it is not.
        """
        with _asked("probe"):
            self._client.list_objects_v2(
                Bucket=self._place.bucket, Prefix=self._place.prefix, MaxKeys=1
            )

    def open(self, storage_path: str) -> BinaryIO:
        """Open a stored file for reading.

        Raises:
            ArtifactNotFound: it is not there, or the path is none of ours.
            StorageAway: the bucket does not answer.
        """
        if not any(one.fullmatch(storage_path) for one in (_KEY, _COPIED, PART_PATH)):
            raise ArtifactNotFound
        return cast(BinaryIO, io.BufferedReader(_Object(self._get, storage_path), CHUNK_BYTES))

    def stored(self, *, before: datetime) -> Iterator[str]:
        """Name the files that were last received before that moment."""
        for path, changed in self._listed("sha256/"):
            if _ended(path, changed) < before:
                yield path

    def discard(self, storage_path: str, *, before: datetime) -> bool:
        """Remove a file that no job names any more; False when it may be received again."""
        for path, changed in self._listed(storage_path):
            if path == storage_path and _ended(path, changed) < before:
                self._remove(path)
                return True
        return False

    def drop_part(self, upload: str, *, number: int, digest: str) -> None:
        """Remove a part that came second."""
        self._remove(self._part_path(upload, number, digest))

    def drop_upload(self, upload: str) -> None:
        """Remove all parts of an upload."""
        if UPLOAD_ID.fullmatch(upload):
            for path, _ in self._listed(f"parts/{upload}/"):
                self._remove(path)

    def uploads(self, *, before: datetime) -> Iterator[str]:
        """Name the uploads that got no part since that moment."""
        last: dict[str, datetime] = {}
        for path, changed in self._listed("parts/"):
            upload = path.split("/")[1]
            last[upload] = max(changed, last.get(upload, changed))
        yield from (upload for upload, changed in last.items() if changed < before)

    def _path_of(self, hashed: str) -> str:
        return f"sha256/{hashed}/{self._today().strftime(_DAY)}"

    def _keep(self, staged: Path, storage_path: str, *, hashed: str) -> None:
        checksum = base64.b64encode(bytes.fromhex(hashed)).decode()
        with _asked("put"), staged.open("rb") as body:
            self._client.put_object(
                Bucket=self._place.bucket, Key=self._place.prefix + storage_path, Body=body,
                ContentLength=staged.stat().st_size, ChecksumSHA256=checksum,
                ContentType="application/octet-stream",
            )  # fmt: skip

    def _get(self, storage_path: str, start: int) -> tuple[Any, int]:
        """Return the body of an object from a byte on, and how many are left."""
        more = {"Range": f"bytes={start}-"} if start else {}
        with _asked("get"):
            got = self._client.get_object(
                Bucket=self._place.bucket, Key=self._place.prefix + storage_path, **more
            )
        return got["Body"], int(got["ContentLength"])

    def _remove(self, storage_path: str) -> None:
        with _asked("delete"):
            self._client.delete_object(
                Bucket=self._place.bucket, Key=self._place.prefix + storage_path
            )

    def _listed(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        ours = self._place.prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._place.bucket, Prefix=ours + prefix
        )
        with _asked("list"):
            for page in pages:
                for one in page.get("Contents", ()):
                    yield one["Key"].removeprefix(ours), one["LastModified"]


class _Object(io.RawIOBase):
    """An object, read as it comes; a seek asks for the rest from there."""

    def __init__(self, get: Callable[[str, int], tuple[Any, int]], storage_path: str) -> None:
        super().__init__()
        self._get, self._path, self._at = get, storage_path, 0
        self._body, self._size = get(storage_path, 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset != self._at:
            self._at = base + offset
            self._drop()
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        if self._body is None:
            self._body, _ = self._get(self._path, self._at)
        with _asked("read"):
            chunk: bytes = self._body.read(len(buffer))
        if not chunk:
            raise StorageAway("The artifact store ended in the middle of a file")
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _ended(path: str, changed: datetime) -> datetime:
    """Return the moment after which nobody wrote an object."""
    key = _KEY.fullmatch(path)
    if key is None:
        return changed
    day = datetime.strptime(key["day"], _DAY).replace(tzinfo=UTC)
    return max(changed, datetime.combine(day, time.max, UTC))


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Translate what S3 says; of its words only the code is written down."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise ArtifactNotFound from None
        if code in _FULL:
            raise StorageFull from None
        log.warning("%s: %s", what, code, extra={"action": "storage"})
        raise StorageAway(f"The artifact store refuses: {code}") from None
    except BotoCoreError as error:
        log.warning("%s: %s", what, type(error).__name__, extra={"action": "storage"})
        raise StorageAway from None
