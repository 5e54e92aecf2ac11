#!/usr/bin/env python3
"""What stands in for the Codex CLI where there is no npm: the only `codex` that is not Codex.

It knows the few words the worker and the demo say (`--version`, `login`, `login status`, `sandbox`,
`exec` with the instruction on stdin), makes the change the scripted model would make, and prints
events of the same shape. It talks to nobody.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VERSION: Final = "0.0.0-standin"
#: Options of `codex exec` that carry a value we have no use for.
IGNORED_WITH_VALUE: Final = (
    "--sandbox",
    "--model",
    "--config",
    "--color",
    "--profile",
    "--add-dir",
)
FAREWELL: Final = '''

def farewell(name: str) -> str:
    """Part from one person."""
    return f"Goodbye, {name}!"
'''
TEST: Final = """\
import unittest

from greetings import farewell


class TestFarewell(unittest.TestCase):
    def test_farewell_names_the_person(self) -> None:
        self.assertEqual(farewell("Ada"), "Goodbye, Ada!")
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One file that was written."""

    path: Path
    kind: str


def edit(workspace: Path) -> tuple[Change, ...]:
    """Extend the demo's package, or leave a note in any other repository."""
    package = workspace / "greetings" / "__init__.py"
    if not package.exists():
        note = workspace / "standin.txt"
        note.write_text("written by the stand-in for the Codex CLI\n", encoding="utf-8")
        return (Change(note, "add"),)
    text = package.read_text(encoding="utf-8")
    if "def farewell" not in text:
        package.write_text(text + FAREWELL, encoding="utf-8")
    test = workspace / "tests" / "test_farewell.py"
    test.parent.mkdir(exist_ok=True)
    test.write_text(TEST, encoding="utf-8")
    return Change(package, "update"), Change(test, "add")


def run(instruction: str, *, workspace: Path, as_json: bool) -> str:
    """Make the change, tell it in Codex's own events or in words, and return the last message."""
    emit("thread.started", as_json=as_json, thread_id="00000000-0000-0000-0000-000000000000")
    emit("turn.started", as_json=as_json)
    changes = [{"path": str(c.path), "kind": c.kind} for c in edit(workspace)]
    item: dict[str, Any] = {"id": "item_0", "type": "file_change", "changes": changes}
    emit("item.started", as_json=as_json, item=item | {"status": "in_progress"})
    emit("item.completed", as_json=as_json, item=item | {"status": "completed"})
    words = len(instruction.split())
    message = f"The stand-in for the Codex CLI read {words} words and changed {len(changes)} files."
    last = {"id": "item_1", "type": "agent_message", "text": message}
    emit("item.completed", as_json=as_json, item=last)
    usage = dict.fromkeys(("input_tokens", "cached_input_tokens", "output_tokens"), 0)
    emit("turn.completed", as_json=as_json, usage=usage)
    if not as_json:
        print(message)
    return message


def emit(kind: str, *, as_json: bool, **fields: object) -> None:
    """Print one event as a line of JSON on stdout, or its name for a person on stderr."""
    if as_json:
        print(json.dumps({"type": kind, **fields}), flush=True)
    else:
        print(kind, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the part of Codex's command line that is understood; `exec` takes what it ignores."""
    top = argparse.ArgumentParser(prog="codex", description="A stand-in for the Codex CLI.")
    top.add_argument("--version", action="version", version=f"codex-cli {VERSION}")
    commands = top.add_subparsers(dest="command", required=True)
    login = commands.add_parser("login")
    login.add_argument("what", nargs="?", choices=["status"])
    login.add_argument("--with-api-key", action="store_true")
    sandbox = commands.add_parser("sandbox")
    sandbox.add_argument("rest", nargs=argparse.REMAINDER)
    run_ = commands.add_parser("exec")
    run_.add_argument("--json", action="store_true")
    run_.add_argument("-C", "--cd", type=Path, default=Path())
    run_.add_argument("-o", "--output-last-message", type=Path)
    run_.add_argument("-s", *IGNORED_WITH_VALUE[:1])
    run_.add_argument("-m", *IGNORED_WITH_VALUE[1:2])
    run_.add_argument("-c", *IGNORED_WITH_VALUE[2:3], action="append")
    for name in IGNORED_WITH_VALUE[3:]:
        run_.add_argument(name)
    run_.add_argument("prompt", nargs="?", default="-")
    return top


def main(argv: list[str] | None = None) -> int:
    """Do what one of the few words asks."""
    options, _ = parser().parse_known_args(argv)
    if options.command == "login":
        if options.with_api_key:
            sys.stdin.read()
        print("Logged in (the stand-in asks nobody)", file=sys.stderr)
        return 0
    if options.command == "sandbox":
        print("the stand-in has no sandbox", file=sys.stderr)
        return 1
    instruction = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not instruction.strip():
        print("no instruction given", file=sys.stderr)
        return 1
    message = run(instruction, workspace=options.cd.absolute(), as_json=options.json)
    if options.output_last_message is not None:
        options.output_last_message.write_text(message, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
