"""What `codex exec --json` says while it works, as far as we know it; the rest is only logged."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from remote_worker.isolation import sandbox_refusal

_MAX_TEXT = 2000
_MAX_LAST_MESSAGE = 16_000
#: Beyond it a sum of some turns might be no JSON integer any more.
_MAX_COUNT = 2**48


@dataclass(slots=True)
class Transcript:
    """What is remembered of a run."""

    #: tells the job's event log: level, message, payload
    tell: Callable[[str, str, dict[str, object] | None], None]
    #: the workspace: paths below it are told as the repository knows them
    root: Path
    #: takes secrets out, before anything is cut: half of one would not be known
    clean: Callable[[object], object] = lambda value: value
    last_message: str | None = None
    #: why the turn failed, in Codex's words
    failure: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    #: commands and edits that came to an end, and those of them that came to nothing
    tried: int = 0
    blocked: int = 0
    #: the sandbox's own words on why it started nothing
    refusal: str | None = None

    def feed(self, line: bytes) -> None:
        """Take one line of stdout."""
        try:
            event = self.clean(json.loads(line))
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        match event.get("type"):
            case "item.started":
                self._item(event.get("item"), started=True)
            case "item.completed":
                self._item(event.get("item"), started=False)
            case "turn.completed":
                self._usage(event.get("usage"))
            case "turn.failed":
                self._failed(event.get("error"))
            case "error":
                # Also said before a retry of Codex's own: the end of the turn decides.
                self.tell("warn", f"codex: {_text(event.get('message'))}", None)

    def _item(self, item: object, *, started: bool) -> None:
        """Pass on what the agent says and does."""
        if not isinstance(item, dict):
            return
        kind = item.get("type")
        if kind == "command_execution" and started:
            self.tell("info", f"$ {_text(item.get('command'))}", {"kind": "command"})
        elif started:
            return
        elif kind == "agent_message":
            text = item.get("text")
            if isinstance(text, str) and text.strip():
                self.last_message = text[:_MAX_LAST_MESSAGE]
                self.tell("info", text[:_MAX_TEXT], {"kind": "message"})
        elif kind == "command_execution":
            self._count(sandbox_refusal(_text(item.get("aggregated_output"))), item)
            code = item.get("exit_code")
            if isinstance(code, int) and 0 < abs(code) < _MAX_COUNT:
                self.tell(
                    "info",
                    f"exit code {code}: {_text(item.get('command'))}",
                    {"kind": "command", "exitCode": code},
                )
        elif kind == "file_change":
            self._count(None, item)
            self._files(item.get("changes"))
        elif kind == "error":
            self.tell("warn", f"codex: {_text(item.get('message'))}", None)

    def _count(self, refusal: str | None, item: dict[str, object]) -> None:
        """Count what was tried; a command that ran and failed is no blocked one."""
        failed = item.get("status") == "failed"
        self.tried += 1
        if failed and (refusal is not None or item.get("type") == "file_change"):
            self.blocked += 1
            self.refusal = self.refusal or refusal

    @property
    def nothing_started(self) -> bool:
        """Say whether the agent tried, and not one command or edit could be done."""
        return self.refusal is not None and self.blocked == self.tried

    def _files(self, changes: object) -> None:
        """Pass on which files were edited."""
        if not isinstance(changes, list):
            return
        below = f"{self.root}/"
        paths = [
            change["path"].removeprefix(below)
            for change in changes
            if isinstance(change, dict) and isinstance(change.get("path"), str)
        ]
        if paths:
            self.tell("info", f"edited {_text(', '.join(paths))}", {"kind": "files"})

    def _usage(self, usage: object) -> None:
        """Add up the tokens of a turn."""
        if not isinstance(usage, dict):
            return
        for key, value in usage.items():
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT:
                self.usage[str(key)] = self.usage.get(str(key), 0) + value
        if self.usage:
            said = ", ".join(f"{count} {name}" for name, count in self.usage.items() if count)
            self.tell("info", f"used {said or 'no tokens'}", {"kind": "usage", **self.usage})

    def _failed(self, error: object) -> None:
        """Remember why the turn failed."""
        message = error.get("message") if isinstance(error, dict) else error
        self.failure = _text(message) or "the turn failed"


def _text(value: object) -> str:
    """Return a bounded text of whatever was said."""
    return (
        value[:_MAX_TEXT]
        if isinstance(value, str)
        else ""
        if value is None
        else repr(value)[:_MAX_TEXT]
    )
