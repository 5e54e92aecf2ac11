"""No secret leaves in any usual spelling, wherever the stream is cut."""

import base64
import html
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_worker.redact import Redactor

SECRET = "pa55\"w0rd/+with=odd'chars"
GITHUB = "ghp_" + "x" * 36


def through(redactor: Redactor, data: bytes, *, size: int) -> bytes:
    stream = redactor.stream()
    pieces = [stream.feed(data[n : n + size]) for n in range(0, len(data), size)]
    return b"".join(pieces) + stream.close()


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
@pytest.mark.parametrize("at", [0, 1, 8191, 8192, 8193, 20_000])
def test_a_stream_cut_anywhere(size: int, at: int) -> None:
    if size == 1 and at > 8193:
        at = 8194
    data = b"a" * at + SECRET.encode() + b"b" * 10_000 + SECRET.encode()
    clean = through(Redactor([SECRET]), data, size=size)
    assert clean == b"a" * at + b"[redacted]" + b"b" * 10_000 + b"[redacted]"


@pytest.mark.parametrize(
    "spelled",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        SECRET.replace("'", "'\\''"),
        *(base64.b64encode(b"x" * n + SECRET.encode() + b"yz").decode() for n in range(5)),
        *(base64.urlsafe_b64encode(b"x" * n + SECRET.encode()).decode() for n in range(4)),
    ],
)
def test_every_usual_spelling(spelled: str) -> None:
    clean = Redactor([SECRET]).text(f"before {spelled} after")
    assert "[redacted]" in clean
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    # Of base64 the outermost characters are shared with the neighbours; no more than that is left.
    assert len(clean) <= len("before [redacted] after") + 8 + 4


@pytest.mark.parametrize(
    "text",
    [
        GITHUB,
        "github_pat_" + "A1_" * 20,
        "AKIA" + "Z" * 16,
        "sk-" + "a1" * 20,
        "drb_wkr_" + "a" * 12 + "_" + "b" * 43 + "_" + "c" * 6,
        "-----BEGIN OPENSSH PRIVATE KEY-----\n"
        + "b3Blbn\n" * 200
        + "-----END OPENSSH PRIVATE KEY-----",
    ],
)
@pytest.mark.parametrize("size", [5, 9000])
def test_known_shapes_need_not_be_told(text: str, size: int) -> None:
    data = f"x = '{text}'\n".encode()
    assert through(Redactor(), data, size=size) == b"x = '[redacted]'\n"


def test_short_values_are_words() -> None:
    assert Redactor(["root", ""]).text("root") == "root"


def test_values_keep_their_shape() -> None:
    value = {"a": [GITHUB, 1, None, True], GITHUB: {"b": f"x {GITHUB}"}}
    assert Redactor().value(value) == {
        "a": ["[redacted]", 1, None, True],
        "[redacted]": {"b": "x [redacted]"},
    }


def test_nothing_else_changes() -> None:
    data = bytes(range(256)) * 100
    assert through(Redactor([SECRET]), data, size=1000) == data


def test_what_no_edge_takes_is_replaced() -> None:
    assert Redactor().text("a\0b\ud800c") == "a\ufffdb?c"


@pytest.mark.parametrize(
    "text", ["task-list-item-checkbox-2-wrapper", "class='sk-spinner-double-bounce-animated'"]
)
def test_names_that_look_a_little_like_a_key_stay(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize("size", [1, 7, 9000])
@pytest.mark.parametrize("far", [0, 100_000])
def test_a_search_finds_a_secret_wherever_it_is_cut(size: int, far: int) -> None:
    data = b"." * far + b"password-1" + b"." * far
    for secret, found in (("password-1", True), ("password-2", False)):
        scan = Redactor([secret]).scan()
        for at in range(0, len(data), size):
            scan.feed(data[at : at + size])
        assert scan.close() is found


def lines(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 76))


#: how a program may write a secret: each is undone by nobody but a reader
SPELLINGS: dict[str, Callable[[str, str], bytes]] = {
    "plain": lambda text, _: text.encode(),
    "url": lambda text, _: quote(text, safe="").encode(),
    "url, lower case": lambda text, _: (
        quote(text, safe="").lower().encode() if text.islower() else quote(text, safe="").encode()
    ),
    "form": lambda text, _: quote_plus(text).encode(),
    "json": lambda text, _: json.dumps(text).encode(),
    "json in json": lambda text, _: json.dumps(json.dumps({"a": text})).encode(),
    "json with slashes escaped": lambda text, _: json.dumps(text).replace("/", "\\/").encode(),
    "html": lambda text, _: html.escape(text).encode(),
    "shell": lambda text, _: ("'" + text.replace("'", "'\\''") + "'").encode(),
    "hex": lambda text, _: text.encode().hex().encode(),
    "hex lines": lambda text, _: lines(text.encode().hex()).encode(),
    "HEX": lambda text, _: text.encode().hex().upper().encode(),
    "utf-16": lambda text, _: text.encode("utf-16"),
    "utf-16 big": lambda text, _: text.encode("utf-16-be"),
    "utf-32": lambda text, _: text.encode("utf-32"),
    "base64": lambda text, before: base64.b64encode(f"{before}{text}~".encode()),
    "base64 lines": lambda text, before: lines(
        base64.b64encode(f"{before}{text}~".encode()).decode()
    ).encode(),
    "base64 url": lambda text, before: base64.urlsafe_b64encode(f"{before}{text}~".encode()),
    "base64 of utf-16": lambda text, _: base64.b64encode(f"{text}~".encode("utf-16-le")),
}
SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=120
).filter(lambda text: len(set(text)) > 5)


@settings(max_examples=200, deadline=None)
@given(
    secret=SECRETS,
    spelling=st.sampled_from(sorted(SPELLINGS)),
    before=st.text("abc =", max_size=80),
    far=st.integers(0, 20_000),
    cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
)
def test_no_spelling_cut_anywhere_leaves_a_secret(
    secret: str, spelling: str, before: str, far: int, cuts: list[int]
) -> None:
    """Most of what was written is gone, whatever stood around it and however it came."""
    spelled = SPELLINGS[spelling](secret, before)
    data = b"." * far + b"\n" + spelled + b"\n" + b"." * 9000
    stream, out, at, turn = Redactor([secret]).stream(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        out.append(stream.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    clean = b"".join([*out, stream.close()])
    assert b"[redacted]" in clean
    around = clean.strip(b".\n").replace(b"[redacted]", b"")
    # What is left of base64 is what stood before it, and the characters it shares.
    allowed = 16 + (len(before) * 2 if "base64" in spelling else 0)
    assert len(around) <= allowed
    assert clean.startswith(b"." * far)
    assert clean.endswith(b"." * 9000)
