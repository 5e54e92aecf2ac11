"""The only one to know what a single value looks like on the wire, coming in and going out."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

import marshmallow as ma
from marshmallow import fields, validate

from broker.errors import InvalidRepository
from broker.policy import repository_pattern
from broker.reservations import keys
from broker.states import Status
from edge_api.errors import InvalidStatusFilter

#: integers of the wire that a signed 32-bit column holds
INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1
#: more digits than any integer of a query string has
_QUERY_INT: Final = re.compile(r"-?[0-9]{1,16}")
_SEQ: Final = re.compile(r"[0-9]{1,16}")
_BLANK_OFFSET: Final = re.compile(r"(T[0-9:.]+) ([0-9]{2}:[0-9]{2})(?=$|~)")
_QUERY_SECONDS: Final = re.compile(r"[0-9]{1,5}(\.[0-9]{1,20})?(e-[0-9]{1,3})?", re.IGNORECASE)
#: for readers of openapi.json alone: to search by it takes a time that grows with the square
_WORD: Final = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SEGMENTS_MAX: Final = 4
#: what openapi.json says of a label; ``artifact_name`` refuses a few more
ARTIFACT_NAME: Final = f"^{_SEGMENT.pattern}(/{_SEGMENT.pattern}){{0,{_SEGMENTS_MAX - 1}}}$"
#: names that some file system takes for a device
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)


class Matches(validate.Regexp):
    """The whole of a text matches a pattern, which OpenAPI readers understand too."""

    def __init__(self, pattern: str, otherwise: str) -> None:
        super().__init__(f"^(?:{pattern})$", error=otherwise)

    def __call__(self, value: Any) -> Any:
        """Refuse what does not match; a bare ``$`` would let a line break follow."""
        if not re.fullmatch(self.regex.pattern, value):
            raise ma.ValidationError(self._format_error(value))
        return value


#: what may stand in a log line, a header or a key
ONE_LINE: Final = Matches(r"[^\x00-\x1f\x7f]*", "Not one line of text.")
WORKER_ID: Final = Matches(r"[A-Za-z0-9._-]{1,128}", "Not the name of a worker.")
LEASE_ID: Final = Matches(r"[A-Za-z0-9_-]{1,64}", "Not a lease id.")
JOB_ID: Final = Matches(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "Not the id of a job.")
QUEUE: Final = Matches(keys.QUEUE_NAME.pattern, "Not the name of a queue.")
DIGEST: Final = Matches(r"sha256:[0-9a-f]{64}", "Not sha256: and 64 lower-case hex digits.")
MEDIA_TYPE: Final = Matches(
    r"[A-Za-z0-9_!#$&^.+-]{1,99}/[A-Za-z0-9_!#$&^.+-]{1,99}(;[ -~]{1,50})?", "Not a media type."
)


def camel(name: str) -> str:
    """Return a name as the wire writes it: ``lease_id`` is ``leaseId``."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def moment(value: datetime) -> str:
    """Write a moment: RFC 3339 in UTC with ``Z``."""
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_moment(text: str) -> datetime:
    """Read an ISO 8601 moment; without a zone it is UTC.

    Raises:
        ValidationError: not a moment.
    """
    try:
        value = datetime.fromisoformat(text)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ma.ValidationError("Not a moment in ISO 8601.") from None


class Int(fields.Integer):
    """A JSON integer, for which 60.0 is another spelling of 60, and no text or boolean is one."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if type(value) is float and value.is_integer():
            return int(value)
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class Seconds(fields.Float):
    """A JSON number of seconds."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> float:
        if type(value) not in {int, float}:
            raise self.make_error("invalid")
        return float(value)


class Flag(fields.Boolean):
    """A JSON boolean, and nothing that merely looks like one."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class QueryInt(fields.Integer):
    """An integer in a query string: decimal digits only."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if not _QUERY_INT.fullmatch(value):
            raise self.make_error("invalid")
        return int(value)


class QuerySeconds(fields.Float):
    """A number of seconds in a query string."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> float:
        if not _QUERY_SECONDS.fullmatch(value):
            raise self.make_error("invalid")
        return float(value)


class Cursor(fields.String):
    """Where the next page begins, as the page before said it."""

    def __init__(self) -> None:
        super().__init__(
            load_default=None,
            validate=[validate.Length(min=1, max=255), ONE_LINE],
            metadata={"pattern": "^[0-9T:.+Z-]+~[0-9a-f-]{36}$"},
        )

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        return _unquoted(str(value))


class Word(fields.String):
    """One line of text, stripped, never empty."""

    def __init__(self, *, longest: int = 255, **kwargs: Any) -> None:
        super().__init__(
            validate=[validate.Length(min=1, max=longest), ONE_LINE],
            metadata={"pattern": _WORD},
            **kwargs,
        )

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return str(super()._deserialize(value, *args, **kwargs)).strip()


class Words(fields.List[str]):
    """A list of words; absent and empty are not the same."""

    def __init__(self) -> None:
        super().__init__(
            Word(), allow_none=True, load_default=None, validate=validate.Length(max=256)
        )


class Prose(fields.String):
    """Text for people, with something in it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"pattern": r"\S"}, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, *args, **kwargs))
        if not text.strip():
            raise ma.ValidationError("May not be blank.")
        return text


class Moment(fields.DateTime):
    """A moment."""

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str | None:
        return None if value is None else moment(value)

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> datetime:
        return parse_moment(value if isinstance(value, str) else "")


class After(fields.Field[datetime | int]):
    """A place in a job's log: the number of an event, or a moment."""

    def __init__(self) -> None:
        super().__init__(
            load_default=None,
            metadata={
                "type": "string",
                "anyOf": [{"pattern": "^[0-9]{1,16}$"}, {"format": "date-time"}],
            },
        )

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> datetime | int:
        return int(value) if _SEQ.fullmatch(value) else parse_moment(_unquoted(value))


def _unquoted(text: str) -> str:
    # The plus of an offset from UTC is a blank to whoever reads a query string.
    return _BLANK_OFFSET.sub(r"\1+\2", text)


class StatusFilter(fields.String):
    """A status to filter by; a wrong one has a refusal of its own."""

    def __init__(self) -> None:
        super().__init__(load_default=None, metadata={"enum": [str(one) for one in Status]})

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Status:
        try:
            return Status(value)
        except ValueError:
            raise InvalidStatusFilter from None


def artifact_name(name: str) -> None:
    """Refuse what is not a label: it becomes a file's name on somebody's machine."""
    segments = name.split("/")
    good = len(segments) <= _SEGMENTS_MAX and all(
        _SEGMENT.fullmatch(one)
        and ".." not in one
        and not one.endswith(".")
        and one.partition(".")[0].lower() not in _DEVICES
        for one in segments
    )
    if not good:
        raise ma.ValidationError(
            f"Not a relative name of up to {_SEGMENTS_MAX} parts "
            "of letters, digits, dots, dashes and underscores."
        )


def repository(pattern: str) -> None:
    """Refuse an allow-list entry that no repository can match."""
    try:
        repository_pattern(pattern)
    except InvalidRepository as error:
        raise ma.ValidationError(error.message) from None


def json_size(value: Any) -> int:
    """Return what a JSON value weighs."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
