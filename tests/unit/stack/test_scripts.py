"""The scripted model: which step is next, and in which of Codex's tools it is asked for."""

import json
from typing import Any

import pytest

from deploy.demo.scripts import (
    SCRIPTS,
    Patch,
    Say,
    Script,
    Shell,
    Wait,
    answer,
    next_step,
    running_session,
)

SCRIPT: Script = (Wait(0.1), Patch("p"), Shell("ls"), Say("done"))
EXEC = [{"type": "function", "name": "exec_command"}]


def request(*items: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    said = {"type": "message", "role": "user", "content": []}
    return {"input": [said, *items], "tools": tools or EXEC}


def output(call_id: str, text: str = "") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def test_a_wait_is_answered_together_with_the_step_behind_it():
    assert next_step(SCRIPT, request()) == (1, (Wait(0.1), Patch("p")))


def test_the_outputs_in_the_request_say_which_step_is_next():
    asked = request(output("step_1"), output("somebody_elses"))
    assert next_step(SCRIPT, asked) == (2, (Shell("ls"),))


def test_a_repeated_request_gets_the_same_answer():
    asked = request(output("step_1"))
    assert list(answer(SCRIPT, asked)) == list(answer(SCRIPT, asked))


def test_a_new_word_of_the_user_starts_the_script_anew():
    again = {"type": "message", "role": "user", "content": []}
    assert next_step(SCRIPT, request(output("step_2"), again))[0] == 1


def test_a_script_that_is_over_ends_the_run():
    assert next_step(SCRIPT, request(output("step_3")))[1] == (Say("The script is over."),)


@pytest.mark.parametrize(
    "tools,name,argument",
    [
        (EXEC, "exec_command", "cmd"),
        ([{"type": "function", "name": "shell_command"}], "shell_command", "command"),
        ([{"type": "function", "name": "shell"}], "shell", "command"),
    ],
)
def test_a_command_is_asked_for_in_the_tool_there_is(
    tools: list[dict[str, Any]], name: str, argument: str
):
    _, item, end = answer((Shell("ls"),), request(tools=tools))
    assert isinstance(item, dict)
    assert item["item"]["name"] == name
    assert "ls" in json.loads(item["item"]["arguments"])[argument]
    assert isinstance(end, dict)
    assert end["type"] == "response.completed"


def test_a_patch_uses_the_patch_tool_where_there_is_one():
    tools = [*EXEC, {"type": "custom", "name": "apply_patch"}]
    _, item, _ = answer((Patch("p"),), request(tools=tools))
    assert isinstance(item, dict)
    assert item["item"]["type"] == "custom_tool_call"


def test_a_command_still_running_is_polled():
    asked = request(output("step_0", "Process running with session ID 42\nOutput:\n"))
    assert running_session(asked) == 42
    _, item, _ = answer((Shell("sleep 60"), Say("done")), asked)
    assert isinstance(item, dict)
    assert item["item"]["name"] == "write_stdin"


def test_a_command_that_exited_is_not():
    assert running_session(request(output("step_0", "Process exited with code 0\n"))) is None
    assert running_session(request()) is None


def test_every_script_ends_the_run():
    for script in SCRIPTS.values():
        assert not isinstance(script[-1], Wait | Patch | Shell)
