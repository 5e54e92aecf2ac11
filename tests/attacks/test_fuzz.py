"""Bytes nobody thought of: for the JSON loader, the reader of tokens, the judge of arrivals."""

import json
import math
import os
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker import tokens
from broker.errors import AuthFailed
from edge_api.errors import MalformedJson
from edge_api.json_body import DEPTH_MAX, INTEGER_MAX, loads
from edge_api.reception import WHOLE_MAX, Arrival, judge

#: a bounded, reproducible cut; `make fuzz` asks for more of it, with a seed of its own
MORE = int(os.environ.get("FUZZ_INPUTS", "0"))
FUZZ = settings(max_examples=MORE or 800, deadline=None, derandomize=not MORE, database=None)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
#: JSON, nearly: what is cut, doubled and glued in it
TEXTS = st.lists(
    st.sampled_from(
        [*'[]{},:"0123456789.eE+- \\nu', "\\ud800", "\\u0000", "NaN", "Infinity", "null", "true",
         '"a"', '"a":1', "1e999", "é", "\ufeff", "\x00", "[" * 40, "9" * 20]
    ),
    max_size=40,
).map("".join)  # fmt: skip


def proper(value: Any, depth: int = 0) -> bool:
    """Tell whether every reader and every store understands a value alike."""
    match value:
        case dict():
            inner = [*value, *value.values()]
        case list():
            inner = value
        case str():
            return "\x00" not in value and not any("\ud800" <= one <= "\udfff" for one in value)
        case bool() | None:
            return True
        case int():
            return abs(value) <= INTEGER_MAX
        case _:
            return math.isfinite(value)
    return depth < DEPTH_MAX and all(proper(one, depth + 1) for one in inner)


def check(data: bytes) -> None:
    try:
        value = loads(data)
    except MalformedJson:
        return
    assert proper(value)
    assert value == json.loads(data)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@FUZZ
@given(TEXTS)
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example('"\\ud83d\\ude00"')
@example('"\\\\u0000"')
def test_nearly_json(text: str) -> None:
    check(text.encode())


@FUZZ
@given(VALUES)
def test_proper_values_are_read_and_no_others(value: Any) -> None:
    text = json.dumps(value)
    try:
        assert loads(text.encode()) == value
    except MalformedJson:
        assert not proper(value)
    else:
        assert proper(value)


TOKEN = tokens.issue("worker").text


@FUZZ
@given(
    st.text(max_size=200)
    | st.tuples(st.integers(0, len(TOKEN)), st.text(min_size=1, max_size=3), st.integers(0, 3)).map(
        lambda cut: TOKEN[: cut[0]] + cut[1] + TOKEN[cut[0] + cut[2] :]
    )
)
@example("drb_wkr_" + "a" * 100_000)
@example("drb_wkr_" + "\u0661" * 12 + "_")
def test_only_a_token_is_a_token(text: str) -> None:
    try:
        tokens.parse(text)
    except AuthFailed:
        assert text != TOKEN
    else:
        assert text == TOKEN


@FUZZ
@given(st.binary(max_size=300), st.integers(0, 300))
def test_an_arrival_is_judged_whatever_came(data: bytes, cut: int) -> None:
    look = judge(data, min(cut, len(data)))
    if look.arrival is Arrival.PART:
        assert look.seen < look.needed <= WHOLE_MAX
