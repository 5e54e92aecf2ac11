"""The only one to know multipart/form-data: small fields whole, files as streams never held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flask import Request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, File, MultipartDecoder, NeedData
from werkzeug.sansio.multipart import Field as FieldEvent

from broker.errors import ArtifactTooLarge
from edge_api.errors import MalformedForm, UnsupportedMediaType
from edge_api.fields import LEASE_ID, WORKER_ID

CHUNK_BYTES: Final = 64 * 1024
#: what all fields and boundaries may weigh together, beside the file
FORM_MAX: Final = 64 * 1024
FIELD_MAX: Final = 8 * 1024
PARTS_MAX: Final = 16
#: RFC 2046 allows 70; some clients write a few more
BOUNDARY_MAX: Final = 200


def described(required: Sequence[str], **more: Mapping[str, Any]) -> Mapping[str, Any]:
    """Describe to OpenAPI the form in which a holder sends a file, and ``more`` of its fields."""
    fields: dict[str, Mapping[str, Any]] = {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "workerId": {"type": "string", "pattern": WORKER_ID.regex.pattern},
        "leaseId": {"type": "string", "pattern": LEASE_ID.regex.pattern},
        "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        **more,
    }
    schema = {"type": "object", "required": list(required), "properties": fields}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form."""

    name: str
    value: str


class FilePart:
    """A file of a form, to be read once, before the next part."""

    def __init__(self, form: Form, name: str, content_type: str | None) -> None:
        self.name = name
        self.content_type = content_type
        self._form = form
        self._rest = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        while not self._rest and not self._ended:
            self._rest, self._ended = self._form.data()
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk

    def drain(self) -> None:
        """Read what is left of it, for nobody."""
        while self.read(CHUNK_BYTES):
            pass


class Form:
    """The body of a request, part by part; ``file_max`` bounds all of it."""

    def __init__(self, request: Request, *, file_max: int) -> None:
        """Look at the headers.

        Raises:
            UnsupportedMediaType: no form, or not as it is.
            ArtifactTooLarge: announced larger than any form with such a file.
        """
        boundary = request.mimetype_params.get("boundary", "")
        if request.mimetype != "multipart/form-data" or not 0 < len(boundary) <= BOUNDARY_MAX:
            raise UnsupportedMediaType("The body must be multipart/form-data with a boundary")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Content-Encoding is not accepted; send the body as it is")
        self._left = file_max + FORM_MAX
        if (request.content_length or 0) > self._left:
            raise ArtifactTooLarge(f"The artifact is larger than {file_max} bytes")
        self._stream = request.stream
        try:
            encoded = boundary.encode("ascii")
        except UnicodeEncodeError:
            raise MalformedForm from None
        self._decoder = MultipartDecoder(encoded, 4 * CHUNK_BYTES, max_parts=PARTS_MAX)

    def parts(self) -> Iterator[Field | FilePart]:
        """Yield the parts as they come in; a file that nobody read is passed over.

        Raises:
            MalformedForm: not a form, or cut short.
            ArtifactTooLarge: more of it than any such form has.
        """
        while not isinstance(event := self._next(), Epilogue):
            if isinstance(event, File):
                part = FilePart(self, event.name or "", event.headers.get("content-type"))
                yield part
                part.drain()
            elif isinstance(event, FieldEvent):
                yield Field(event.name or "", self._value())

    def data(self) -> tuple[bytes, bool]:
        """Return the next bytes of the part, and whether they are its last."""
        event = self._next()
        if not isinstance(event, Data):
            raise MalformedForm
        return event.data, not event.more_data

    def _value(self) -> str:
        value, ended = b"", False
        while not ended:
            data, ended = self.data()
            value += data
            if len(value) > FIELD_MAX:
                raise MalformedForm(f"A field is longer than {FIELD_MAX} bytes")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise MalformedForm("A field is not UTF-8") from None

    def _next(self) -> Event:
        try:
            while isinstance(event := self._decoder.next_event(), NeedData):
                self._decoder.receive_data(self._chunk() or None)
        except (ValueError, RequestEntityTooLarge):
            raise MalformedForm from None
        return event

    def _chunk(self) -> bytes:
        try:
            chunk = self._stream.read(CHUNK_BYTES)
        except (OSError, ClientDisconnected):
            raise MalformedForm("The body could not be read to its end") from None
        self._left -= len(chunk)
        if self._left < 0:
            raise ArtifactTooLarge
        return chunk
