"""What `drawbridge up` tells a person: addresses, and commands that can be run as they stand."""

import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest

from broker.stack.stack import Stack
from broker.stack.up import report

TOLD = {
    "edgeUrl": "http://127.0.0.1:1", "flowerUrl": None, "brokerUrl": "redis://127.0.0.1:2/0",
    "resultBackend": "redis://127.0.0.1:2/1", "queue": "remote", "dataDir": "/data",
    "databaseUrl": "sqlite:////data/ledger.sqlite3", "reservationsUrl": "redis://127.0.0.1:3/0",
}  # fmt: skip


def test_a_person_is_told_commands_that_run_as_they_stand(capsys: pytest.CaptureFixture[str]):
    stack = Mock(Stack, operator_token_file=Path("/data/tokens/operator"))
    stack.report.return_value = TOLD
    report(stack, as_json=False)
    lines = capsys.readouterr().out.replace("\\\n", "").splitlines()
    commands = {}
    for line in lines:
        words = [word for word in shlex.split(line) if "DRAWBRIDGE_" not in word]
        [place] = [n for n, word in enumerate(words) if Path(word).is_file()] or [None]
        if place is not None:
            commands[" ".join(words[:place])] = words[place + 1 :]
    assert commands["jobs"] == ["jobs", "list"]
    made, run = commands["more tokens"], commands["a worker more"]
    assert made[:4] == ["tokens", "create", "--kind", "worker"]
    assert run[:3] == ["run", "--url", TOLD["edgeUrl"]]
    # the worker is given what the first made
    assert {"--worker-id", "--token-file", "NAME", "NAME.token"} <= set(made) & set(run)
    assert lines[-1] == "ready; Ctrl-C stops it"
