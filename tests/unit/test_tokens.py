"""The text of a token: what it is made of, and what is no token."""

from __future__ import annotations

import hashlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import tokens
from broker.errors import AuthFailed


@pytest.mark.parametrize("short, kind", tokens.KINDS.items())
def test_a_token_says_its_kind_and_reads_back(short: str, kind: str):
    issued = tokens.issue(kind)
    parsed = tokens.parse(issued.text)
    assert re.fullmatch(tokens.PATTERN, issued.text)
    assert issued.text.startswith(f"drb_{short}_{issued.id}_{parsed.secret}_")
    assert (parsed.kind, parsed.id) == (kind, issued.id)
    assert issued.secret_sha256 == hashlib.sha256(parsed.secret.encode()).hexdigest()
    assert parsed.secret_sha256 == issued.secret_sha256


def test_no_two_tokens_share_an_id_or_a_secret():
    parsed = [tokens.parse(tokens.issue("worker").text) for _ in range(500)]
    assert len({one.id for one in parsed}) == len({one.secret for one in parsed}) == 500


def test_the_secret_is_shown_by_nothing_but_the_text():
    issued = tokens.issue("operator")
    parsed = tokens.parse(issued.text)
    assert parsed.secret not in f"{issued!r}{parsed!r}"


def test_tokens_written_yesterday_are_read_today():
    parsed = tokens.parse("drb_wkr_000000000001_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg_1V22fo")
    assert (parsed.kind, parsed.id) == ("worker", "000000000001")
    assert parsed.secret == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg"
    assert parsed.secret_sha256.startswith("71d84b1859bad11a")


@given(st.integers(0, 68), st.sampled_from(string.ascii_letters + string.digits + "_-"))
def test_a_typo_is_no_token(place: int, letter: str):
    text = tokens.issue("worker").text
    typo = text[:place] + letter + text[place + 1 :]
    if typo != text:
        with pytest.raises(AuthFailed):
            tokens.parse(typo)


@given(st.integers(8, 66))
def test_two_letters_swapped_are_no_token(place: int):
    text = tokens.issue("worker").text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    if swapped != text:
        with pytest.raises(AuthFailed):
            tokens.parse(swapped)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drb",
        "Bearer x",
        "x" * 9000,
        "drb_wkr_\x00",
        "drb_wkr_" + "é" * 12,
        "drb_ses_000000000000_" + "0" * 43 + "_000000",
        "drb_wkr_00000000000\uff10_" + "0" * 43 + "_000000",
    ],
)
def test_what_is_no_token_is_refused_alike(text: str):
    with pytest.raises(AuthFailed) as raised:
        tokens.parse(text)
    assert raised.value.message == AuthFailed().message


def test_blanks_around_a_token_are_the_callers_business():
    text = tokens.issue("worker").text
    for wrapped in (f"{text}\n", f" {text}", f"{text}{text}"):
        with pytest.raises(AuthFailed):
            tokens.parse(wrapped)
