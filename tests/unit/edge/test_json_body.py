"""JSON that every reader understands alike, and nothing else."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_api.errors import MalformedJson
from edge_api.json_body import DEPTH_MAX, INTEGER_MAX, loads

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=40,
)


@given(JSON, st.booleans())
def test_good_json_is_read_as_it_is(value: object, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(MalformedJson):
        loads(data)


@pytest.mark.parametrize("kind", ["[]", "{}", "mixed"])
def test_depth_is_counted_exactly(kind: str) -> None:
    def nested(depth: int, inner: str) -> bytes:
        opened = {"[]": "[", "{}": '{"a":', "mixed": "["}[kind]
        closed = {"[]": "]", "{}": "}", "mixed": "]"}[kind]
        flat = ', "x"' if kind == "mixed" else ""
        return (opened * depth + inner + (flat + closed) * depth).encode()

    for inner in ("1", '"x"', "null"):
        assert loads(nested(DEPTH_MAX, inner)) is not None
        with pytest.raises(MalformedJson, match="deep"):
            loads(nested(DEPTH_MAX + 1, inner))
    for empty in ("[]", "{}"):
        assert loads(nested(DEPTH_MAX - 1, empty)) is not None
        with pytest.raises(MalformedJson, match="deep"):
            loads(nested(DEPTH_MAX, empty))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert loads(b"[" + b"[],{}," * 1000 + b'"[[[[{{{{"]') is not None


def test_a_bomb_of_brackets_is_refused() -> None:
    for bracket in (b"[", b'{"a":'):
        with pytest.raises(MalformedJson, match=r"deep|Not JSON"):
            loads(bracket * 400_000)


@pytest.mark.parametrize("text", ['"\\u0000"', '{"\\u0000": 1}', '["a", {"b": "x\\u0000"}]'])
def test_nul_is_refused(text: str) -> None:
    with pytest.raises(MalformedJson, match="cannot be stored"):
        loads(text.encode())


@pytest.mark.parametrize(
    "text", [r'"\ud800"', r'"\udfff"', r'"\uDBFFx"', r'{"\ud83d": 1}', r'"\ude00\ud83d"']
)
def test_half_a_pair_is_refused(text: str) -> None:
    with pytest.raises(MalformedJson, match="surrogate"):
        loads(text.encode())


@pytest.mark.parametrize(
    "text,value",
    [
        (r'"\ud83d\ude00"', "😀"),
        (r'"\\u0000"', "\\u0000"),
        (r'"\\ud800"', "\\ud800"),
        (r'"\\\\u0000 \u00e9"', "\\\\u0000 é"),
        ('"\u202e"', "\u202e"),
        ("1E2", 100.0),
        ("-0", 0),
        (str(2**53), 2**53),
        (str(-(2**53)), -(2**53)),
    ],
)
def test_what_only_looks_wrong_is_read(text: str, value: object) -> None:
    assert loads(text.encode()) == value


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "-1e999", str(2**53 + 1), "-" + "9" * 5000, "9" * 5000]
)
def test_numbers_beyond_all_readers_are_refused(text: str) -> None:
    with pytest.raises(MalformedJson):
        loads(f'{{"a": [{text}]}}'.encode())


def test_a_key_that_occurs_twice_is_refused() -> None:
    with pytest.raises(MalformedJson, match="twice"):
        loads(b'[{"a": {"b": 1, "c": 2, "b": 1}}]')


def test_a_refusal_does_not_repeat_the_body() -> None:
    with pytest.raises(MalformedJson) as refusal:
        loads(b'{"password": hunter2}')
    assert "hunter2" not in refusal.value.message
