"""Logs are bounded, whole lines, without secrets."""

import io

import pytest

from remote_worker.output import Captured, Log, ToFile, TooMuchOutput
from remote_worker.process import STDERR, STDOUT
from remote_worker.redact import Redactor

SECRET = "s3cr3t-s3cr3t"


def test_lines_of_both_streams_stay_whole() -> None:
    file, lines = io.BytesIO(), list[bytes]()
    log = Log(file, redactor=Redactor(), limit=10_000, on_line=lines.append)
    log.write(STDOUT, b'{"a"')
    log.write(STDERR, b"warning: ")
    log.write(STDOUT, b": 1}\n{")
    log.write(STDERR, b"careful\n")
    log.write(STDOUT, b"}")
    log.close()
    assert file.getvalue() == b'{"a": 1}\nwarning: careful\n{}\n'
    assert lines == [b'{"a": 1}', b"{}"]


def test_the_file_and_the_tail_have_no_secrets_but_the_listener_sees_the_line() -> None:
    file, lines = io.BytesIO(), list[bytes]()
    log = Log(file, redactor=Redactor([SECRET]), limit=10_000, on_line=lines.append)
    log.write(STDOUT, b"key s3cr3t-")
    log.write(STDOUT, b"s3cr3t\n")
    log.close()
    assert file.getvalue() == b"key [redacted]\n"
    assert log.tail == "key [redacted]"
    assert lines == [b"key s3cr3t-s3cr3t"]


def test_no_half_of_a_secret_is_in_the_tail() -> None:
    log = Log(io.BytesIO(), redactor=Redactor([SECRET]), limit=10_000)
    log.write(STDOUT, SECRET.encode() + b"x" * 395 + b"\n")
    log.close()
    assert log.tail == "cted]" + "x" * 395


def test_a_full_log_says_so_once_and_the_tail_goes_on() -> None:
    file = io.BytesIO()
    log = Log(file, redactor=Redactor(), limit=1000)
    for number in range(10_000):
        log.write(STDOUT, f"line {number}\n".encode())
    log.close()
    text = file.getvalue().decode()
    assert len(text) < 1100
    assert text.count("cut here") == 1
    assert log.tail.endswith("line 9999")
    assert len(log.tail.splitlines()) == 40


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    file, lines = io.BytesIO(), list[bytes]()
    log = Log(file, redactor=Redactor(), limit=10**8, on_line=lines.append)
    for _ in range(50):
        log.write(STDOUT, b"x" * 65536)
    log.close()
    assert [len(line) for line in lines] == [1048576, 1048576, 1048576, 131072]


def test_captured_output_is_bounded() -> None:
    captured = Captured(limit=10)
    captured.write(STDERR, b"e" * 100_000 + b"end")
    captured.write(STDOUT, b"1234567890")
    with pytest.raises(TooMuchOutput):
        captured.write(STDOUT, b"1")
    assert captured.out == b"1234567890"
    assert captured.err.endswith("end")
    assert len(captured.err) <= 16_384


def test_a_file_takes_stdout_only() -> None:
    file = io.BytesIO()
    sink = ToFile(file, limit=5)
    sink.write(STDERR, b"warning")
    sink.write(STDOUT, b"12345")
    assert (file.getvalue(), sink.err) == (b"12345", "warning")
    with pytest.raises(TooMuchOutput):
        sink.write(STDOUT, b"6")
