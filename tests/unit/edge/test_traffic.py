"""What is written down: one line a record, whatever is in it."""

import json
import logging

import pytest

from edge_api.traffic import JsonFormatter

NASTY = 'x\r\n{"level": "error"}\x1b[31m\u202e\x00"\\'


def line(**extra: object) -> str:
    record = logging.makeLogRecord(
        {"name": "a", "levelno": 20, "levelname": "INFO", "msg": "hello %s", "args": (NASTY,)}
        | extra
    )
    return JsonFormatter().format(record)


def test_no_value_forges_a_line() -> None:
    text = line(job=NASTY, status=200)
    assert text.isascii()
    assert text.isprintable()
    said = json.loads(text)
    assert (said["message"], said["job"], said["status"]) == (f"hello {NASTY}", NASTY, 200)
    assert said["level"] == "info"


def test_what_is_not_known_is_left_out() -> None:
    assert "token" not in json.loads(line(token=None))


def test_a_crash_is_told_in_one_line() -> None:
    with pytest.raises(ValueError) as caught:
        int(NASTY)
    text = line(exc_info=(caught.type, caught.value, caught.tb))
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["traceback"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"\xff", float("nan")])
def test_anything_can_be_written(value: object) -> None:
    assert line(thing=value)
