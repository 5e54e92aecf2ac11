"""How the Codex CLI is called, and in which environment: the same for preflight and for jobs."""

import json
from collections.abc import Iterator
from pathlib import Path

from remote_worker.settings import Settings

_MIN_SECRET = 16


def environment(settings: Settings, *, home: Path, tmp: Path) -> dict[str, str]:
    """Return all a Codex child gets to see; a job adds its own `BRIDGE_*`."""
    return {
        **settings.pass_environment,
        "PATH": settings.path,
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "CODEX_HOME": str(settings.codex_home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
    }


def login_status_argv(settings: Settings) -> list[str]:
    """Return the command that says whether Codex is logged in."""
    return [settings.codex, "login", "status"]


def sandbox_argv(settings: Settings) -> list[str]:
    """Return the command that does nothing, in Codex's own sandbox."""
    return [settings.codex, "sandbox", "--", "true"]


def exec_argv(
    settings: Settings, *, repo: Path, model: str | None, effort: str | None
) -> list[str]:
    """Return the command of a run; the instruction comes on stdin and nowhere else.

    The sandbox is the worker's decision: nothing of the payload reaches these words but a model
    and an effort of a checked form.
    """
    return [
        settings.codex, "exec", "--json", "--color", "never", "--ephemeral",
        "--skip-git-repo-check", "--sandbox", settings.codex_sandbox, "--cd", str(repo),
        "-c", 'approval_policy="never"',
        *(["--model", model] if model else []),
        *(["-c", f'model_reasoning_effort="{effort}"'] if effort else []),
        "-",
    ]  # fmt: skip


def secrets(settings: Settings) -> list[str]:
    """Return what the agent could read of its own login and must not get into a log."""
    try:
        auth = json.loads((settings.codex_home / "auth.json").read_bytes())
    except (OSError, ValueError):
        return []
    return [text for text in _texts(auth) if len(text) >= _MIN_SECRET]


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
