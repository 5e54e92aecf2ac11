"""What the payload of a `codex_exec` job may say, checked before any program runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from remote_worker.errors import JobFailed
from remote_worker.handlers.publish_payload import Publish, parse_publish
from remote_worker.repository import InvalidRepository, Repository, parse

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_EFFORT = re.compile(r"[a-z]{1,16}")
_MAX_INSTRUCTION = 256 * 1024
_MAX_TIME_LIMIT_S = 7 * 24 * 3600
_MAX_DEPTH = 1_000_000
#: The starting commit and nothing before it; `depth: 0` asks for the whole history.
_DEFAULT_DEPTH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CodexTask:
    """A checked payload."""

    repository: Repository
    ref: str | None
    instruction: str
    model: str | None
    effort: str | None
    time_limit_s: int | None
    depth: int
    #: what earlier clones have fetched is not fetched again
    reuse: bool
    publish: Publish


def parse_task(payload: Mapping[str, object]) -> CodexTask:
    """Return the task a payload describes; unknown keys are left alone.

    Only `repository` names the repository: by this key the edge decided who may have the job, so
    another spelling of it must not be able to name another one.
    """
    mode = payload.get("workdirMode")
    if mode not in (None, "fresh_clone", "reuse"):
        raise _invalid(f"workdirMode is 'fresh_clone' or 'reuse', not {mode!r}")
    codex = payload.get("codex")
    inner = codex if isinstance(codex, dict) else {}
    return CodexTask(
        repository=_repository(payload.get("repository")),
        ref=_text(payload.get("ref"), "ref"),
        instruction=_instruction(payload.get("instruction")),
        model=_matching(payload.get("model", inner.get("model")), _MODEL, "model"),
        effort=_matching(payload.get("effort", inner.get("effort")), _EFFORT, "effort"),
        time_limit_s=_count(
            payload.get("timeLimitSeconds"), "timeLimitSeconds", 1, _MAX_TIME_LIMIT_S
        ),
        depth=_DEFAULT_DEPTH
        if (depth := _count(payload.get("depth"), "depth", 0, _MAX_DEPTH)) is None
        else depth,
        reuse=mode == "reuse",
        publish=parse_publish(payload.get("publish")),
    )


def check_model(value: str | None) -> bool:
    """Say whether a model's name is one."""
    return value is None or _MODEL.fullmatch(value) is not None


def check_effort(value: str | None) -> bool:
    """Say whether a reasoning effort is one."""
    return value is None or _EFFORT.fullmatch(value) is not None


def _repository(value: object) -> Repository:
    """Return the repository."""
    if not isinstance(value, str):
        raise JobFailed("repository is missing", error_type="invalid_repository")
    try:
        return parse(value)
    except InvalidRepository as error:
        raise JobFailed(str(error), error_type="invalid_repository") from None


def _instruction(value: object) -> str:
    """Return the instruction: any text but what cannot go through a pipe as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        raise _invalid("instruction is missing")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _invalid("instruction contains a lone surrogate") from None
    if "\0" in value or size > _MAX_INSTRUCTION:
        raise _invalid(f"instruction contains NUL or is longer than {_MAX_INSTRUCTION} bytes")
    return value


def _text(value: object, name: str) -> str | None:
    """Return an optional non-empty text."""
    if value is None or isinstance(value, str):
        return value or None
    raise _invalid(f"{name} is no text")


def _matching(value: object, pattern: re.Pattern[str], name: str) -> str | None:
    """Return an optional text of a known form."""
    text = _text(value, name)
    if text is not None and not pattern.fullmatch(text):
        raise _invalid(f"{name} does not look like one")
    return text


def _count(value: object, name: str, low: int, high: int) -> int | None:
    """Return an optional whole number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _invalid(f"{name} is a whole number from {low} to {high}")
    return value


def _invalid(text: str) -> JobFailed:
    """Return the failure for a payload that no second try makes better."""
    return JobFailed(text, error_type="invalid_payload")
