"""What Codex is made to do offline: the only place that knows the scripts and Codex's tools.

A script is a row of steps, one a turn. It keeps no state: which step comes next is read from the
request, so any number of runs may go on at once and a repeated request gets the same answer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

JSON = dict[str, Any]

#: Codex hands a longer command back as a session to be polled.
SHELL_YIELD_MS: Final = 10_000
_RUNNING_SESSION: Final = re.compile(r"session ID (\d+)")
_STEP_ID: Final = re.compile(r"step_(\d+)")


@dataclass(frozen=True, slots=True)
class Patch:
    """A turn that edits files by `apply_patch`."""

    text: str


@dataclass(frozen=True, slots=True)
class Shell:
    """A turn that runs one shell command in the workspace."""

    command: str


@dataclass(frozen=True, slots=True)
class Say:
    """A turn that ends the run with a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """A turn that ends the run with an error which Codex does not retry."""

    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A turn whose answer is held back with the stream open; then the next step is answered."""

    seconds: float


Step = Patch | Shell | Say | Refuse | Wait
Script = tuple[Step, ...]

EDIT_PATCH: Final = """\
*** Begin Patch
*** Update File: greetings/__init__.py
@@
 def greet(name: str) -> str:
     \"\"\"Greet one person.\"\"\"
     return f"Hello, {name}!"
+
+
+def farewell(name: str) -> str:
+    \"\"\"Part from one person.\"\"\"
+    return f"Goodbye, {name}!"
*** Add File: tests/test_farewell.py
+import unittest
+
+from greetings import farewell
+
+
+class TestFarewell(unittest.TestCase):
+    def test_farewell_names_the_person(self) -> None:
+        self.assertEqual(farewell("Ada"), "Goodbye, Ada!")
*** End Patch
"""
ADD_PATCH: Final = """\
*** Begin Patch
*** Add File: scripted.txt
+written by a scripted run
*** End Patch
"""
RUN_TESTS: Final = "PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover -s tests -t . 2>&1"
EDIT: Final[Script] = (
    Patch(EDIT_PATCH),
    Shell(RUN_TESTS),
    Say("Added farewell() beside greet(), with a test; the tests pass."),
)
ADD: Final[Script] = (Patch(ADD_PATCH), Say("Added scripted.txt."))


def scripts(seconds: float) -> Mapping[str, Script]:
    """Return the scripts by name; `seconds` is how long the slow ones take."""
    return MappingProxyType(
        {
            # for the repository that repository.py makes
            "edit": EDIT,
            # for any repository
            "add": ADD,
            "slow": (Wait(seconds), *ADD),
            "sleep": (Shell(f"sleep {seconds}"), *ADD),
            "nothing": (Say("There was nothing to do."),),
            "fail": (Refuse("the script says no"),),
        }
    )


SCRIPTS: Final = scripts(seconds=5.0)


def next_step(script: Script, request: JSON) -> tuple[int, tuple[Step, ...]]:
    """Return the number of the next step, and it with the waits before it.

    The number is in the id we gave each call, so that Codex's own extra outputs do not count.
    """
    done = 0
    for item in _since_instruction(request):
        found = _STEP_ID.match(str(item.get("call_id", "")))
        if found and str(item.get("type", "")).endswith("_output"):
            done = max(done, int(found[1]) + 1)
    last = done
    while last < len(script) - 1 and isinstance(script[last], Wait):
        last += 1
    return last, script[done : last + 1] or (Say("The script is over."),)


def running_session(request: JSON) -> int | None:
    """Return the session of a command that was still running when Codex asked, if any."""
    outputs = [i for i in _since_instruction(request) if str(i.get("type", "")).endswith("_output")]
    if not outputs:
        return None
    head = str(outputs[-1].get("output", ""))[:400]
    found = _RUNNING_SESSION.search(head)
    return int(found[1]) if found and "exited" not in head else None


def _since_instruction(request: JSON) -> list[JSON]:
    """Return the items after the last word of the user: a resumed session starts anew."""
    items = [i for i in request.get("input", []) if isinstance(i, dict)]
    last = max((n for n, i in enumerate(items) if i.get("role") == "user"), default=-1)
    return items[last + 1 :]


def call(request: JSON, step: Patch | Shell, *, call_id: str) -> JSON:
    """Return the tool call for a step, by the tools this Codex offers."""
    tools = {str(t.get("name")): str(t.get("type")) for t in request.get("tools", [])}
    if isinstance(step, Patch):
        if tools.get("apply_patch") == "custom":
            return {
                "type": "custom_tool_call",
                "name": "apply_patch",
                "call_id": call_id,
                "input": step.text,
            }
        # Codex recognises this command line and applies the patch itself.
        return _shell_call(tools, f"apply_patch <<'PATCH'\n{step.text}PATCH\n", call_id)
    return _shell_call(tools, step.command, call_id)


def _shell_call(tools: Mapping[str, str], command: str, call_id: str) -> JSON:
    if "exec_command" in tools:
        # No login shell: a profile costs time and may print.
        arguments: JSON = {"cmd": command, "login": False, "yield_time_ms": SHELL_YIELD_MS}
        return _function_call("exec_command", arguments, call_id)
    if "shell_command" in tools:
        return _function_call("shell_command", {"command": command}, call_id)
    return _function_call("shell", {"command": ["bash", "-c", command]}, call_id)


def _function_call(name: str, arguments: JSON, call_id: str) -> JSON:
    return {
        "type": "function_call",
        "name": name,
        "call_id": call_id,
        "arguments": json.dumps(arguments),
    }


def answer(script: Script, request: JSON) -> Iterator[JSON | Wait]:
    """Yield the stream of events that answers one request."""
    response_id = f"resp_{len(request.get('input', []))}"
    yield {"type": "response.created", "response": {"id": response_id}}
    session = running_session(request)
    if session is not None:
        poll = {"session_id": session, "chars": "", "yield_time_ms": SHELL_YIELD_MS}
        yield _item(_function_call("write_stdin", poll, f"poll_{response_id}"))
        yield _completed(response_id, request)
        return
    number, steps = next_step(script, request)
    for step in steps:
        match step:
            case Wait():
                yield step
            case Patch() | Shell():
                yield _item(call(request, step, call_id=f"step_{number}"))
            case Say(text):
                yield _item(_message(text, response_id))
            case Refuse(message):
                yield _failed(response_id, message)
                return
    yield _completed(response_id, request)


def _item(item: JSON) -> JSON:
    return {"type": "response.output_item.done", "item": item}


def _message(text: str, response_id: str) -> JSON:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "id": f"msg_{response_id}", "content": content}


def _failed(response_id: str, message: str) -> JSON:
    error = {"code": "invalid_prompt", "message": message}
    response = {"id": response_id, "status": "failed", "error": error}
    return {"type": "response.failed", "response": response}


def _completed(response_id: str, request: JSON) -> JSON:
    """Numbers of a fixed rule, so that two runs of one script report the same usage."""
    used = 100 * len(request.get("input", []))
    usage = {
        "input_tokens": used,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 25,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used + 25,
    }
    return {"type": "response.completed", "response": {"id": response_id, "usage": usage}}
