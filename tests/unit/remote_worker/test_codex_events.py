"""What is understood of Codex's own events."""

import json
from pathlib import Path

import pytest

from remote_worker.handlers.codex_events import Transcript
from remote_worker.redact import Redactor

Told = list[tuple[str, str, dict[str, object] | None]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def transcript(told: Told) -> Transcript:
    return Transcript(
        tell=lambda level, text, payload: told.append((level, text, payload)), root=Path("/w/repo")
    )


def feed(transcript: Transcript, *events: object) -> None:
    for event in events:
        transcript.feed(json.dumps(event).encode())


def item(kind: str, **more: object) -> dict[str, object]:
    return {"id": "item_0", "type": kind, **more}


def test_a_usual_run(transcript: Transcript, told: Told) -> None:
    command = item("command_execution", command="make test")
    feed(
        transcript,
        {"type": "thread.started", "thread_id": "x"},
        {"type": "turn.started"},
        {"type": "item.completed", "item": item("reasoning", text="thinking")},
        {"type": "item.started", "item": command},
        {"type": "item.completed", "item": command | {"exit_code": 2}},
        {"type": "item.completed", "item": command | {"exit_code": 0}},
        {
            "type": "item.completed",
            "item": item("file_change", changes=[{"path": "/w/repo/a"}, {"path": "b"}]),
        },
        {"type": "item.completed", "item": item("agent_message", text="Halfway.")},
        {"type": "item.completed", "item": item("agent_message", text="Done.")},
        {"type": "turn.completed", "usage": {"input_tokens": 10, "output_tokens": 2}},
        {"type": "turn.completed", "usage": {"input_tokens": 5, "output_tokens": 1}},
    )
    assert [text for _, text, _ in told] == [
        "$ make test", "exit code 2: make test", "edited a, b", "Halfway.", "Done.",
        "used 10 input_tokens, 2 output_tokens", "used 15 input_tokens, 3 output_tokens",
    ]  # fmt: skip
    assert transcript.last_message == "Done."
    assert transcript.usage == {"input_tokens": 15, "output_tokens": 3}
    assert transcript.failure is None


def test_a_failed_turn(transcript: Transcript, told: Told) -> None:
    feed(
        transcript,
        {"type": "error", "message": "stream disconnected, retrying 1/5"},
        {"type": "turn.failed", "error": {"message": "no quota"}},
    )
    assert transcript.failure == "no quota"
    assert told == [("warn", "codex: stream disconnected, retrying 1/5", None)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[" * 100_000,
        b"3",
        b"{}",
        b'{"type": 3}',
        b'{"type": "something.new", "item": {}}',
        b'{"type": "item.completed"}',
        b'{"type": "item.completed", "item": {"type": "agent_message", "text": 5}}',
        b'{"type": "item.completed", "item": {"type": "file_change", "changes": [1, {"path": 2}]}}',
        b'{"type": "turn.completed", "usage": {"input_tokens": "many", "x": true}}',
        b'{"type": "turn.completed", "usage": 4}',
        b'{"type": "turn.completed", "usage": {"input_tokens": 99999999999999999999}}',
        b'{"type": "item.completed", "item": {"type": "command_execution", "exit_code": 1e400}}',
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)
def test_what_is_not_understood_is_left_alone(
    transcript: Transcript, told: Told, line: bytes
) -> None:
    transcript.feed(line)
    assert told == []
    assert (transcript.last_message, transcript.failure, transcript.usage) == (None, None, {})


@pytest.mark.parametrize("error", [None, 4, {}, {"message": None}])
def test_a_failure_without_words_is_a_failure(transcript: Transcript, error: object) -> None:
    feed(transcript, {"type": "turn.failed", "error": error})
    assert transcript.failure


def test_long_texts_are_cut(transcript: Transcript, told: Told) -> None:
    feed(transcript, {"type": "item.completed", "item": item("agent_message", text="x" * 100_000)})
    assert len(told[0][1]) == 2000
    assert len(transcript.last_message or "") == 16_000


BWRAP = "bwrap: Creating new namespace failed: (ENOSPC)\n"


def command(output: str, code: int) -> dict[str, object]:
    status = "failed" if code else "completed"
    more = {"aggregated_output": output, "exit_code": code, "status": status}
    return {"type": "item.completed", "item": item("command_execution", command="x", **more)}


def edit(status: str) -> dict[str, object]:
    return {"type": "item.completed", "item": item("file_change", changes=[], status=status)}


@pytest.mark.parametrize(
    "events,blocked",
    [
        ([], False),
        ([command(BWRAP, 1)], True),
        ([edit("failed"), command(BWRAP, 1)], True),
        ([edit("completed"), command(BWRAP, 1)], False),
        ([command("ok\n", 0), command(BWRAP, 1)], False),
        ([command("no such file\n", 1)], False),
        ([command("about bwrap: it\n" + BWRAP, 1)], False),
        ([command(BWRAP, 0)], False),
        # A patch that does not fit says nothing of the sandbox.
        ([edit("failed")], False),
    ],
)
def test_a_sandbox_that_starts_nothing_is_noticed(
    transcript: Transcript, events: list[object], blocked: bool
) -> None:
    feed(transcript, *events)
    assert transcript.nothing_started is blocked
    if blocked:
        assert transcript.refusal == BWRAP.strip()


def test_no_half_of_a_secret_is_told(told: Told) -> None:
    transcript = Transcript(
        tell=lambda level, text, payload: told.append((level, text, payload)),
        root=Path("/w"), clean=Redactor(["s3cr3t-s3cr3t"]).value,
    )  # fmt: skip
    text = "x" * 1990 + "s3cr3t-s3cr3t"
    feed(transcript, {"type": "item.completed", "item": item("agent_message", text=text)})
    assert "s3c" not in told[0][1]
