"""The only one to know how the bytes of a request become JSON, and which never do."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from flask import Request
from werkzeug.exceptions import ClientDisconnected

from edge_api.errors import BodyTooLarge, LengthRequired, MalformedJson, UnsupportedMediaType

KIB: Final = 1024
#: what a JSON body may weigh unless its route says otherwise
BODY_MAX: Final = 256 * KIB
DEPTH_MAX: Final = 32
#: beyond it a double, and so JavaScript and Lua, no longer tells neighbours apart
INTEGER_MAX: Final = 2**53


def read_json(request: Request, *, limit: int, optional: bool = False) -> Any:
    """Read the body of a request.

    Raises:
        UnsupportedMediaType: neither plain nor application/json.
        LengthRequired: a body without an announced length.
        BodyTooLarge: announced larger than ``limit``; nothing of it was read.
        MalformedJson: not JSON that every reader understands alike.
    """
    length = request.content_length
    chunked = "Transfer-Encoding" in request.headers
    if optional and not length and not chunked:
        return {}
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Content-Encoding is not accepted; send the body as it is")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType
    if length is None or chunked:
        raise LengthRequired
    if length > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes")
    try:
        data = request.get_data(cache=False)
    except (OSError, ClientDisconnected):
        raise MalformedJson("The body could not be read to its end") from None
    if len(data) < length:
        raise MalformedJson("The body is shorter than its Content-Length")
    return loads(data)


def loads(data: bytes) -> Any:
    """Read JSON strictly: no NaN, no duplicate keys, no depth, nothing a database chokes on.

    Raises:
        MalformedJson: and why.
    """
    try:
        text = data.decode()
        value = _DECODER.decode(text)
    except RecursionError:
        raise MalformedJson(_TOO_DEEP) from None
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"Not JSON: {error.msg} at character {error.pos}") from None
    # Both walks are for the few bodies that can need them.
    if text.count("[") + text.count("{") > DEPTH_MAX:
        _check_depth(value)
    if "\\u" in text:
        _check_text(text, value)
    return value


_TOO_DEEP: Final = f"The body is nested deeper than {DEPTH_MAX} levels"


def _integer(digits: str) -> int:
    # Python refuses to read more than 4300 digits, and reading them takes quadratic time.
    if len(digits) > len(str(-INTEGER_MAX)) or abs(number := int(digits)) > INTEGER_MAX:
        raise MalformedJson("An integer lies beyond 2^53")
    return number


def _float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise MalformedJson("A number is too large")
    return number


def _constant(_word: str) -> NoReturn:
    raise MalformedJson("NaN and Infinity are not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedJson("A key occurs twice in one object")
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        holders = [one for one in level if isinstance(one, dict | list)]
        if not holders:
            return
        level = [
            inner
            for holder in holders
            for inner in (holder.values() if isinstance(holder, dict) else holder)
        ]
    raise MalformedJson(_TOO_DEEP)


def _check_text(text: str, value: Any) -> None:
    # PostgreSQL stores no U+0000, and nothing at all encodes half of a surrogate pair.
    if "\\u0000" in text or "\\ud" in text.lower():
        whole = json.dumps(value, ensure_ascii=False)
        if "\\u0000" in whole.replace("\\\\", ""):
            raise MalformedJson("U+0000 cannot be stored")
        try:
            whole.encode()
        except UnicodeEncodeError:
            raise MalformedJson("A surrogate stands alone") from None
