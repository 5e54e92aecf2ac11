"""JSON as strangers may send it: what a later reader could choke on is none."""

from __future__ import annotations

import json
import math
from typing import Final

from broker.records import Json

#: lists and objects within each other
DEPTH_MAX: Final = 200


class Unfit(Exception):
    """The message can not become a job; the message of the exception says why."""


def loads(text: str | bytes) -> Json:
    """Parse JSON strictly: no NaN, no infinity, no nesting that would break a later reader.

    Raises:
        Unfit: it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"not JSON: {str(error)[:200] or type(error).__name__}") from None
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX:
        _check_depth(value)
    return value


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is too large")
    return number


def _check_depth(value: Json) -> None:
    level = [value]
    for _ in range(DEPTH_MAX):
        inner = (
            one
            for outer in level
            if isinstance(outer, (dict, list))
            for one in (outer.values() if isinstance(outer, dict) else outer)
        )
        level = list(inner)
        if not level:
            return
    raise Unfit(f"nested deeper than {DEPTH_MAX}")
