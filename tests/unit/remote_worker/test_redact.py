"""No secret leaves in any usual spelling, wherever the stream is cut."""

import base64
import json
from urllib.parse import quote

import pytest

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
