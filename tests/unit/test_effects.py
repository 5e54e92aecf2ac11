"""What Celery is told of each transition, and in which order (decision 16)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from broker import effects
from broker.records import Job
from broker.states import Status

AT = datetime(2026, 7, 1, 12, tzinfo=UTC)
SIGNATURE = {"task": "next", "args": [], "kwargs": {}, "options": {}}
ENVELOPE = {
    "headers": {"argsrepr": "('x',)", "kwargsrepr": "{}", "root_id": "root", "parent_id": "up"},
    "embed": {
        "callbacks": [SIGNATURE, SIGNATURE],
        "errbacks": [SIGNATURE, SIGNATURE],
        "chain": [SIGNATURE],
        "chord": SIGNATURE,
    },
}
ALL = effects.canvas_of(ENVELOPE)


def job(**values: Any) -> Job:
    """Make a job in the midst of its second attempt, from a message that was retried once."""
    fields: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    fields |= {
        "id": "6f0c1b1e-5b0d-4c58-9f6f-8e1b7a0f2f11", "task_id": "task", "queue": "remote",
        "type": "codex_exec", "status": Status.RUNNING, "payload": {"a": 1}, "attempt": 2,
        "max_attempts": 3, "fence": 2, "claimed_by": "w1", "retries": 1,
    }  # fmt: skip
    return Job(**fields | values)


def said(rows: list[effects.Row]) -> list[str]:
    """Name each row by its kind and what it is about."""
    return [
        ":".join(str(v) for v in (kind, data.get("type", data.get("state", data.get("index")))))
        for kind, data in rows
    ]


FAILED = {"error_type": "app.errors.Bad", "error_message": "no", "traceback": "Traceback…"}


@pytest.mark.parametrize(
    "rows, order",
    [
        (
            lambda canvas: effects.succeeded(job(), canvas, AT, runtime_s=1.5),
            ["link:0", "link:1", "chain:None", "store:SUCCESS", "chord:SUCCESS",
             "event:task-succeeded"],
        ),
        (
            lambda canvas: effects.failed(job(**FAILED), canvas, AT, worker="w1"),
            ["store:FAILURE", "chord:FAILURE", "chain:None", "errback:0", "errback:1",
             "event:task-failed"],
        ),
        (
            lambda canvas: effects.revoked(
                job(reason="cancelled"), canvas, AT, terminated=True, worker="w1"
            ),
            ["store:REVOKED", "chord:REVOKED", "event:task-revoked"],
        ),
        (
            lambda canvas: effects.rejected(job(**FAILED), canvas, AT),
            ["event:task-rejected", "store:FAILURE", "chord:FAILURE", "chain:None", "errback:0",
             "errback:1", "event:task-failed"],
        ),
    ],
)  # fmt: skip
def test_an_end_is_told_in_stock_order(
    rows: Callable[[Mapping[str, Any] | None], list[effects.Row]], order: list[str]
):
    assert said(rows(ALL)) == order
    bare = [one for one in order if one.partition(":")[0] in {"store", "event"}]
    assert said(rows(None)) == bare


def test_what_is_no_end_fires_no_canvas():
    assert said(effects.received(job(attempt=1), ENVELOPE, AT)) == ["event:task-received"]
    assert said(effects.granted(job(), AT)) == ["state:STARTED", "event:task-started"]
    error = effects.error_of(job(**FAILED))
    assert said(effects.retried(job(), error, AT, worker="w1")) == [
        "state:RETRY", "event:task-retried",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "embed, canvas",
    [
        ({}, None),
        ({"callbacks": None, "errbacks": [], "chain": None, "chord": None}, None),
        ({"callbacks": [SIGNATURE]}, (1, 0, False, False)),
        ({"errbacks": [SIGNATURE] * 3}, (0, 3, False, False)),
        ({"chain": [SIGNATURE]}, (0, 0, True, False)),
        ({"chord": SIGNATURE}, (0, 0, False, True)),
    ],
)
def test_a_canvas_is_counted(embed: dict[str, Any], canvas: tuple[Any, ...] | None):
    found = effects.canvas_of({"embed": embed})
    if canvas is None:
        assert found is None
    else:
        assert found is not None
        assert tuple(found[name] for name in ("links", "errbacks", "chain", "chord")) == canvas
    assert effects.canvas_of(None) is None
    assert effects.canvas_of({}) is None


def test_retries_are_the_messages_and_our_attempts_before():
    assert effects.celery_retries(job(retries=0, attempt=1)) == 0
    assert effects.celery_retries(job(retries=1, attempt=2)) == 2
    for rows in (
        effects.granted(job(), AT),
        effects.succeeded(job(), None, AT, runtime_s=0),
        effects.failed(job(), None, AT, worker=None),
        effects.revoked(job(), None, AT, terminated=False, worker=None),
    ):
        assert [data["retries"] for kind, data in rows if kind in {"state", "store"}] == [2]


@pytest.mark.parametrize(
    "reason, terminated, word",
    [
        ("expired", False, "expired"),
        ("cancelled", False, "revoked"),
        ("cancelled", True, "terminated"),
    ],
)
def test_a_revoke_says_why(reason: str, terminated: bool, word: str):
    rows = effects.revoked(job(reason=reason), ALL, AT, terminated=terminated, worker="w1")
    assert [data["reason"] for kind, data in rows if kind in {"store", "chord"}] == [word, word]
    assert rows[-1][1]["fields"] == {
        "terminated": terminated, "signum": None, "expired": word == "expired",
    }  # fmt: skip


def test_an_error_is_carried_whole_and_shown_short():
    long = "x" * 5000
    rows = effects.failed(job(error_type=None, error_message=long), None, AT, worker="w1")
    assert rows[0][1]["error"] == {
        "type": effects.REMOTE_ERROR, "message": long, "traceback": None,
    }  # fmt: skip
    shown = rows[-1][1]["fields"]["exception"]
    assert shown.startswith("RemoteJobError('xxx")
    assert len(shown) < 1100
    assert rows[-1][1]["fields"]["traceback"] == ""


def test_a_result_is_shown_as_get_would_return_it():
    def shown(**values: Any) -> str:
        rows = effects.succeeded(job(**values), None, AT, runtime_s=2.5)
        assert rows[-1][1]["fields"]["runtime"] == 2.5
        return str(rows[-1][1]["fields"]["result"])

    assert shown(result={"a": [1]}) == "{'a': [1]}"
    assert shown(result=0, result_summary="s") == "0"
    assert shown(result=None, result_summary="s") == "'s'"
    assert shown() == "None"
    assert len(shown(result="x" * 5000)) == effects.REPR_MAX


def test_a_received_task_is_described_by_its_message():
    fields = effects.received(job(attempt=1, retries=0), ENVELOPE, AT)[0][1]["fields"]
    assert fields["args"] == "('x',)"
    assert (fields["root_id"], fields["parent_id"], fields["name"]) == ("root", "up", "codex_exec")
    ours = effects.received(job(), None, AT)[0][1]["fields"]
    assert (ours["kwargs"], ours["root_id"], ours["args"]) == ("{'a': 1}", "task", "()")


def test_every_row_is_json_and_says_when():
    for rows in (
        effects.received(job(), ENVELOPE, AT),
        effects.granted(job(), AT),
        effects.succeeded(job(), ALL, AT, runtime_s=0.1),
        effects.failed(job(**FAILED), ALL, AT, worker=None),
        effects.retried(job(), effects.error_of(job(**FAILED)), AT, worker=None),
        effects.revoked(job(), ALL, AT, terminated=True, worker=None),
    ):
        for kind, data in rows:
            json.dumps(data, allow_nan=False)
            if kind == "event":
                assert data["at"] == AT.timestamp()
