"""The built-in `command` type: only what the owner lists, word by word."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker.client import Client
from remote_worker.handlers import HANDLERS
from remote_worker.job import parse_job
from remote_worker.lease import Terms
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Spool
from tests.unit.remote_worker.edge import TOKEN, FakeEdge, Held

Do = Callable[..., Held]


@pytest.fixture
def do(client: Client, edge: FakeEdge, make_settings: Callable[..., Settings]) -> Do:
    """Run one job of the type."""

    def call(*programs: str, **payload: object) -> Held:
        settings = make_settings(allow_program=programs)
        settings.work_dir.mkdir(exist_ok=True)
        spool = Spool(settings.work_dir)
        spool.open()
        held = edge.offer("command", **payload)
        job_run = JobRun(
            parse_job(held.job), client=client, settings=settings, spool=spool, handlers=HANDLERS,
            redactor=Redactor([TOKEN]), terms=Terms(lease_s=60, interval_s=0.1),
            stopping=lambda: False, on_drain=lambda: None,
        )  # fmt: skip
        assert job_run.run()
        spool.close()
        return held

    return call


def test_a_program_gets_its_words_and_no_shell(do: Do, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    words = ["$(touch x)", "; touch", f"`touch {marker}`", "*", "a b", f"{TOKEN}"]
    held = do("printf", argv=["printf", "<%s>", *words])
    assert held.ended == "complete"
    result = held.report["result"]
    assert result["exitCode"] == 0
    assert result["tail"] == f"<$(touch x)><; touch><`touch {marker}`><*><a b><[redacted]>"
    assert result["log"]["artifactId"]
    assert held.artifacts["logs/command.log"]["text"].strip() == result["tail"]
    assert not marker.exists()


def test_stdin_and_an_empty_directory(do: Do) -> None:
    code = "import os, sys; print(os.listdir('.'), sys.stdin.read())"
    held = do(sys.executable, argv=[sys.executable, "-c", code], stdin="in")
    assert held.report["result"]["tail"] == "[] in"


@pytest.mark.parametrize(
    "programs,payload,error_type",
    [
        ((), {"argv": ["true"]}, "unsupported_job_type"),
        (("true",), {"argv": ["false"]}, "program_not_allowed"),
        (("true",), {"argv": ["/bin/true"]}, "program_not_allowed"),
        (("true",), {"argv": ["true "]}, "program_not_allowed"),
        (("true",), {"argv": "true"}, "invalid_payload"),
        (("true",), {"argv": []}, "invalid_payload"),
        (("true",), {"argv": ["true", 1]}, "invalid_payload"),
        (("true",), {"argv": ["true", "a\0b"]}, "invalid_payload"),
        (("true",), {"argv": ["true", "\ud800"]}, "invalid_payload"),
        (("true",), {"argv": ["true"], "timeLimitSeconds": True}, "invalid_payload"),
        (("true",), {"argv": ["true"], "stdin": 7}, "invalid_payload"),
        (("false",), {"argv": ["false"]}, "command_failed"),
        (("sleep",), {"argv": ["sleep", "60"], "timeLimitSeconds": 1}, "time_limit_exceeded"),
    ],
    ids=repr,
)
def test_what_fails(
    do: Do, programs: tuple[str, ...], payload: dict[str, object], error_type: str
) -> None:
    held = do(*programs, **payload)
    assert (held.ended, held.report["errorType"]) == ("fail", error_type)
    assert held.report["retryable"] is False


def test_a_program_cannot_put_another_file_in_its_logs_place(do: Do, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "command.log").write_text("another job's")
    code = (
        "import os, pathlib, shutil; here = pathlib.Path.cwd().parent\n"
        "shutil.rmtree(here / 'logs', ignore_errors=True)\n"
        f"os.symlink({str(other)!r}, here / 'logs')"
    )
    held = do(sys.executable, argv=[sys.executable, "-c", code])
    assert held.ended == "complete"
    assert held.artifacts["logs/command.log"]["text"] == ""
