"""The `command` job: one program of the owner's list, its words given one by one, never a shell."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from remote_worker.errors import JobFailed
from remote_worker.handlers.context import Context, Outcome
from remote_worker.output import Log

LOG_NAME = "logs/command.log"
_MAX_LOG = 50 * 1024 * 1024
_MAX_WORDS = 1000
_MAX_BYTES = 256 * 1024
_MAX_TIME_LIMIT_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A checked payload."""

    argv: tuple[str, ...]
    stdin: str
    time_limit_s: int | None


def command(context: Context) -> Outcome:
    """Run one program in the job's own empty directory."""
    programs = context.settings.allow_program
    if not programs:
        raise JobFailed(
            "this worker does not run jobs of type 'command'"
            " (its owner lists the programs with --allow-program)",
            error_type="unsupported_job_type",
        )
    wish = _parse(context.payload)
    if wish.argv[0] not in programs:
        raise JobFailed(
            f"this worker does not run {wish.argv[0]!r}; it runs: {', '.join(map(repr, programs))}",
            error_type="program_not_allowed",
        )
    # What we write about the program lies one level up, where it could put nothing in its place.
    inside = replace(context, directory=context.directory / "inside")
    stdin, place = context.directory / "stdin", inside.directory / "work"
    stdin.write_text(wish.stdin, encoding="utf-8")
    place.mkdir(parents=True)
    path = context.directory / LOG_NAME
    path.parent.mkdir()
    context.step(f"running {wish.argv[0]}")
    begun = time.monotonic()
    code, tail = _run(inside, wish, stdin=stdin, place=place, path=path)
    seconds = time.monotonic() - begun
    if code != 0:
        raise JobFailed(
            f"{wish.argv[0]} ended with {code}\n{tail}",
            error_type="command_failed",
            files=[(LOG_NAME, path)],
        )
    return Outcome(
        summary=f"{wish.argv[0]} ended well in {seconds:.0f} s",
        result={
            "exitCode": code, "durationSeconds": round(seconds, 1), "tail": tail, "log": None,
        },
        files=((LOG_NAME, path),),
        references={"log": LOG_NAME},
    )  # fmt: skip


def _run(context: Context, wish: _Wish, *, stdin: Path, place: Path, path: Path) -> tuple[int, str]:
    """Run it and return its exit code and last words."""
    with path.open("wb") as file:
        log = Log(file, redactor=context.redactor, limit=_MAX_LOG)
        try:
            code = context.run(
                wish.argv, sink=log, cwd=place, stdin=stdin, time_limit_s=wish.time_limit_s
            )
        except JobFailed as failure:
            raise failure.with_files([(LOG_NAME, path)]) from None
        finally:
            log.close()
    return code, log.tail


def _parse(payload: Mapping[str, object]) -> _Wish:
    """Return what a payload asks for; unknown keys are left alone."""
    argv, stdin, limit = (payload.get(key) for key in ("argv", "stdin", "timeLimitSeconds"))
    if not isinstance(argv, list) or not 0 < len(argv) <= _MAX_WORDS:
        raise _invalid(f"argv is a list of 1-{_MAX_WORDS} words, the program first")
    words = tuple(_text(word, "a word of argv") for word in argv)
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= _MAX_TIME_LIMIT_S
    ):
        raise _invalid(f"timeLimitSeconds is a whole number from 1 to {_MAX_TIME_LIMIT_S}")
    return _Wish(
        argv=words,
        stdin="" if stdin is None else _text(stdin, "stdin"),
        time_limit_s=limit,
    )


def _text(value: object, name: str) -> str:
    """Return a text that can be a word of a command line."""
    if not isinstance(value, str) or "\0" in value:
        raise _invalid(f"{name} is a text without NUL")
    if value != value.encode(errors="replace").decode() or len(value.encode()) > _MAX_BYTES:
        raise _invalid(f"{name} has half characters, or more than {_MAX_BYTES} bytes")
    return value


def _invalid(text: str) -> JobFailed:
    """Return the failure for a payload that no second try makes better."""
    return JobFailed(text, error_type="invalid_payload")
