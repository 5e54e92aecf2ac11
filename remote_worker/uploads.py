"""A file in parts: what the edge says of an upload, and which parts it still lacks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from remote_worker.errors import Unanswered

#: files above this come in parts, so that a cut line costs a part and not the file
PARTS_ABOVE = 8 * 1024 * 1024
_LEAST_PART = 64 * 1024
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload as it stands at the edge."""

    id: str
    part_bytes: int
    #: digest by number of the parts that are there
    parts: Mapping[int, str]
    #: the artifact it has become
    artifact_id: str | None

    def missing(self, size: int) -> list[int]:
        """List the parts of a file of that size that are not there."""
        count = -(-size // self.part_bytes)
        return [number for number in range(1, count + 1) if number not in self.parts]


def artifact_id(raw: Mapping[str, object]) -> str:
    """Read which artifact an answer names."""
    found = raw.get("id")
    if not isinstance(found, str):
        raise Unanswered("the answer to an upload names no artifact")
    return found


def parse_upload(raw: Mapping[str, object]) -> Upload:
    """Read what the edge says of an upload."""
    id_, part_bytes, parts = raw.get("id"), raw.get("partBytes"), raw.get("parts")
    artifact = raw.get("artifact")
    # its id becomes part of a path
    readable = isinstance(id_, str) and _ID.fullmatch(id_) and id_.strip(".")
    if not readable or type(part_bytes) is not int or part_bytes < _LEAST_PART:
        raise Unanswered("the answer about an upload cannot be read")
    return Upload(
        id=str(id_),
        part_bytes=part_bytes,
        parts=dict(_part(one) for one in parts) if isinstance(parts, list) else {},
        artifact_id=artifact_id(artifact) if isinstance(artifact, dict) else None,
    )


def _part(raw: object) -> tuple[int, str]:
    """Read which part is there."""
    number = raw.get("number") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or type(number) is not int:
        raise Unanswered("the answer about an upload cannot be read")
    return number, str(raw.get("digest"))
