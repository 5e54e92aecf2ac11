"""What a payload may say about publishing, checked before any program runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from remote_worker.errors import JobFailed

_MAX_TITLE = 200
_MAX_TEXT = 32 * 1024


class Mode(StrEnum):
    """What is made of a patch."""

    #: the patch is the product
    NONE = "none"
    #: a branch of the job's own name
    BRANCH = "branch"
    #: the branch, and a pull request of it
    PR = "pr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A checked wish."""

    mode: Mode = Mode.NONE
    base_branch: str | None = None
    title: str | None = None
    body: str | None = None
    commit_message: str | None = None


def parse_publish(value: object) -> Publish:
    """Return the wish a payload's `publish` describes; unknown keys are left alone."""
    if value is None:
        return Publish()
    if not isinstance(value, dict):
        raise _invalid("publish is an object with a mode")
    mode = value.get("mode") or Mode.NONE
    if mode not in tuple(Mode):
        raise _invalid(f"publish.mode is one of {', '.join(Mode)}, not {mode!r}")
    title = _text(value, "title", _MAX_TITLE)
    if title is not None and len(title.splitlines()) > 1:
        raise _invalid("publish.title is one line")
    return Publish(
        mode=Mode(mode),
        base_branch=_text(value, "baseBranch", _MAX_TITLE),
        title=title,
        body=_text(value, "body", _MAX_TEXT),
        commit_message=_text(value, "commitMessage", _MAX_TEXT),
    )


def _text(value: Mapping[str, object], key: str, limit: int) -> str | None:
    """Return an optional text that git and a forge can take."""
    text = value.get(key)
    if text is None:
        return None
    if not isinstance(text, str):
        raise _invalid(f"publish.{key} is no text")
    if "\0" in text or len(text) > limit or text != text.encode(errors="replace").decode():
        raise _invalid(f"publish.{key} has at most {limit} characters, and no NUL or half ones")
    return text.strip() or None


def _invalid(text: str) -> JobFailed:
    """Return the failure for a payload that no second try makes better."""
    return JobFailed(text, error_type="invalid_payload")
