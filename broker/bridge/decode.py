"""How a raw message of the Celery broker becomes a job, a rejection, or a task of Celery's own.

kombu decodes base64, as it encoded it; we inflate, with a bound that kombu does not have (291 kB of
zlib reached 596 MB in its ``Message``, before any code of ours), and we refuse all but JSON before
anything is deserialised.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import Any, Final

from broker import payload
from broker.payload import BODY_MAX, KEEP_MAX, Message
from broker.records import Json, NewJob, Rejection
from broker.strict_json import Unfit, loads

#: base64 makes a third more of a body, headers come on top
RAW_MAX: Final = 2 * BODY_MAX
#: names of Celery's own tasks begin with it
BUILTIN: Final = "celery."
#: the queue that a dead-lettered message was in first, says RabbitMQ
_ORIGIN: Final = "x-first-death-queue"
#: what RabbitMQ adds to the headers on the way; a redelivery is still the same message
_ADDED: Final = ("x-death", "x-delivery-count", "x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Builtin:
    """A task of Celery's own that a Celery worker has to execute."""

    name: str
    #: inflated, where the worker would do it without a bound
    body: bytes | str = b""


Decoded = NewJob | Rejection | Builtin


def _inflate_zlib(body: bytes) -> tuple[bytes, bool]:
    inflater = zlib.decompressobj()
    return inflater.decompress(body, BODY_MAX), inflater.eof


def _inflate_bz2(body: bytes) -> tuple[bytes, bool]:
    inflater = bz2.BZ2Decompressor()
    return inflater.decompress(body, BODY_MAX), inflater.eof


def _inflate_lzma(body: bytes) -> tuple[bytes, bool]:
    inflater = lzma.LZMADecompressor(memlimit=8 * BODY_MAX)
    return inflater.decompress(body, BODY_MAX), inflater.eof


_INFLATERS: Final[Mapping[str, Callable[[bytes], tuple[bytes, bool]]]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), _inflate_zlib),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), _inflate_bz2),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), _inflate_lzma),
}


def inflate(body: bytes, compression: object) -> bytes:
    """Inflate a body, to ``BODY_MAX`` bytes and no further.

    Raises:
        Unfit: it is larger, damaged, or compressed in a way we have no bound for.
    """
    inflater = _INFLATERS.get(compression) if isinstance(compression, str) else None
    if inflater is None:
        raise Unfit(f"compression {str(compression)[:64]!r} is refused")
    try:
        inflated, ended = inflater(body)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise Unfit(f"the body cannot be inflated: {error}") from None
    if not ended:
        long = len(inflated) >= BODY_MAX
        raise Unfit(f"too_large: inflates beyond {BODY_MAX} bytes" if long else "the body is cut")
    return inflated


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Reads the messages of one queue; every method answers, none raises."""

    queue: str
    #: names of Celery's own tasks that this app can execute
    builtins: frozenset[str]
    timezone: tzinfo = UTC
    #: queues whose messages a broker may have parked in this one; they are theirs again
    origins: frozenset[str] = frozenset()

    def redis(self, raw: bytes, channel: Any) -> Decoded:
        """Read an element of a Redis list; ``channel`` is kombu's, for its codecs alone."""
        if len(raw) > RAW_MAX:
            return self._unreadable(raw, f"too_large: longer than {RAW_MAX} bytes")
        try:
            outer = loads(raw)
        except Unfit as unfit:
            return self._unreadable(raw, str(unfit))
        parts = _parts(outer)
        if parts is None:
            return self._unreadable(raw, "not a message of kombu's")
        headers, properties = parts
        builtin = self._builtin(headers)
        if builtin is not None and "compression" not in headers:
            return Builtin(builtin)
        plain = {key: value for key, value in headers.items() if key != "compression"}
        outer |= {"headers": plain, "properties": {"delivery_tag": None, **properties}}
        error: str | None = None
        body: bytes | str = ""
        try:
            body = channel.Message(outer, channel=channel).body or ""
            if "compression" in headers:
                raw_body = body if isinstance(body, bytes) else body.encode()
                body = inflate(raw_body, headers["compression"])
        except Unfit as unfit:
            error = str(unfit)
        except (ValueError, TypeError, AttributeError, LookupError):
            error = "the body is not encoded as the message says"
        if error is None and builtin is not None:
            # a worker inflates it again, without a bound, but to no more than was seen here
            return Builtin(builtin)
        # kombu serves low numbers first on Redis, the ledger high ones (decision 19)
        return self.read(
            body, outer, headers=plain, properties=properties,
            priority=-_number(properties.get("priority")), error=error,
        )  # fmt: skip

    def message(self, message: Any) -> Decoded:
        """Read a message of any other transport, its body as it came (``feed.py``)."""
        body = message.body or b""
        try:
            headers, properties = _plain(message.headers), _plain(message.properties)
            properties["delivery_info"] = _plain(message.delivery_info)
        except Unfit as unfit:
            raw = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
            return self._unreadable(raw, str(unfit))
        properties.pop("application_headers", None)
        origin = headers.get(_ORIGIN)
        headers = {name: value for name, value in headers.items() if not _added(name)}
        error: str | None = None
        compression = getattr(message, "compression", None)
        try:
            if compression is not None:
                raw = body if isinstance(body, bytes) else body.encode(errors="surrogatepass")
                body = inflate(raw, compression)
        except Unfit as unfit:
            error = str(unfit)
        if error is None and (name := self._builtin(headers)) is not None:
            return Builtin(name, body)
        outer = {
            "content-type": message.content_type,
            "content-encoding": message.content_encoding,
        }
        queue = origin if isinstance(origin, str) and origin in self.origins else self.queue
        return replace(self, queue=queue).read(
            body, outer, headers=headers, properties=properties,
            priority=_number(properties.get("priority")), error=error,
        )  # fmt: skip

    def read(
        self,
        body: bytes | str,
        outer: Mapping[str, Json],
        *,
        headers: Mapping[str, Json],
        properties: Mapping[str, Json],
        priority: int,
        error: str | None = None,
    ) -> NewJob | Rejection:
        """Read a message whose body is plain by now; with ``error`` only its id is of use."""
        message = Message(
            queue=self.queue,
            body=body,
            content_type=outer.get("content-type"),
            content_encoding=outer.get("content-encoding"),
            headers=headers,
            properties=properties,
            delivery_info=properties.get("delivery_info") or {},
            priority=priority,
            timezone=self.timezone,
        )
        if error is not None:
            return payload.reject(message, headers, error)
        return payload.read(message)

    def _builtin(self, headers: Mapping[str, Json]) -> str | None:
        name = headers.get("task")
        return name if isinstance(name, str) and name in self.builtins else None

    def _unreadable(self, raw: bytes, reason: str) -> Rejection:
        return Rejection(
            task_id=payload.derived_id(self.queue, raw),
            queue=self.queue,
            type="unknown",
            reason=reason,
            envelope={"body": raw[:KEEP_MAX].decode("utf-8", "replace")},
        )


def _parts(outer: Json) -> tuple[dict[str, Json], dict[str, Json]] | None:
    """Return headers and properties, or None when the shapes are not kombu's."""
    if not isinstance(outer, dict):
        return None
    headers, properties = outer.get("headers") or {}, outer.get("properties") or {}
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return None
    if not isinstance(properties.get("delivery_info") or {}, dict):
        return None
    if not isinstance(outer.get("body"), str):
        return None
    return headers, properties


def _plain(table: Mapping[str, Any] | None) -> dict[str, Json]:
    """Make JSON of a table that may hold times, bytes and decimals (AMQP).

    Raises:
        Unfit: it is nested too deep, or holds numbers that JSON has not.
    """
    try:
        text = json.dumps(dict(table or {}), default=str, skipkeys=True)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unfit(f"the headers are no JSON: {str(error)[:200]}") from None
    read: dict[str, Json] = loads(text)
    return read


def _added(name: str) -> bool:
    return name.startswith(_ADDED)


def _number(value: object) -> int:
    return value if type(value) is int else 0
