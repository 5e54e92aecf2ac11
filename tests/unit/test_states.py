"""The table of transitions: what it may hold, and who reads it."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker
from broker import states
from broker.reservations import scripts
from broker.states import LIVE, TERMINAL, TRANSITIONS, Index, Status, Trigger

README = Path(broker.__file__).with_name("README.md")

#: design.md §4, in its own words
DESIGN = {
    ("queued", "grant", "running"),
    ("running", "complete", "succeeded"),
    ("running", "retry", "queued"),
    ("running", "fail", "failed"),
    ("running", "exhaust", "dead_letter"),
    ("running", "lose", "queued"),
    ("running", "lose_last", "dead_letter"),
    ("running", "release", "queued"),
    ("queued", "cancel", "cancelled"),
    ("running", "cancel", "cancelled"),
    ("dead_letter", "redrive", "queued"),
    ("failed", "redrive", "queued"),
}


def test_the_table_is_the_design():
    assert {(str(a), str(t), str(b)) for (a, t), b in TRANSITIONS.items()} == DESIGN


def test_the_words_are_the_contract():
    assert [str(status) for status in Status] == [
        "queued", "running", "succeeded", "failed", "cancelled", "dead_letter",
    ]  # fmt: skip
    assert [str(index) for index in Index] == ["ready", "scheduled", "granting", "reserved"]


def test_a_status_is_live_or_has_ended():
    assert set(Status) == LIVE | TERMINAL
    assert not LIVE & TERMINAL
    assert {"queued", "running"} == LIVE
    assert dict(states.REDRIVABLE) == {
        "dead_letter": ("dead_letter",), "failed": ("failed",), "any": ("failed", "dead_letter"),
    }  # fmt: skip


WORDS = {str(status) for status in Status}
NAMES = {status.name for status in Status}


def lists(source: str) -> Iterator[str]:
    """Name where a module writes down several statuses, which the table could tell it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                if len({name for one in elements if (name := status_in(one))}) > 1:
                    yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.BoolOp(op=ast.Or(), values=values):
                asked = [one.comparators[0] for one in values if isinstance(one, ast.Compare)]
                if len({name for one in asked if (name := status_in(one))}) > 1:
                    yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Constant(value=str(text)):
                if len(WORDS & set(re.findall(r"'(\w+)'", text))) > 1:
                    yield f"line {node.lineno}: {text}"


def status_in(node: ast.expr) -> str | None:
    """Return the status that an expression is, if it is one."""
    match node:
        case ast.Attribute(attr=name) if name in NAMES:
            return Status[name]
        case ast.Constant(value=str(word)) if word in WORDS:
            return word
    return None


@pytest.mark.parametrize("folder", ["broker", "edge_api"])
def test_nobody_else_writes_down_which_statuses_there_are(folder: str):
    files = [
        path
        for path in (README.parents[1] / folder).rglob("*.py")
        if "migrations" not in path.parts
    ]
    assert len(files) > 20
    found = [
        f"{path.name}, {one}"
        for path in files
        if path != Path(states.__file__)
        for one in lists(path.read_text(encoding="utf-8"))
    ]
    assert not found, "see LIVE, TERMINAL, REDRIVABLE and sources() in broker/states.py"


@pytest.mark.parametrize(
    "bad",
    [
        'ENDED = frozenset({"failed", "dead_letter"})',
        "query.where(jobs.c.status.in_([Status.QUEUED, Status.RUNNING]))",
        "back = (states.Status.FAILED, Status.DEAD_LETTER)",
        "over = job.status is Status.FAILED or job.status == 'cancelled'",
        """sa.text("status IN ('queued', 'running')")""",
    ],
)
def test_a_list_of_statuses_is_found(bad: str):
    assert len(list(lists(bad))) == 1
    assert not list(lists('one = (Status.QUEUED, "and", "others"); two = ("failed", "Job failed")'))


def test_only_a_redrive_leads_out_of_an_end():
    out = {trigger for (status, trigger) in TRANSITIONS if status in TERMINAL}
    assert out == {Trigger.REDRIVE}
    assert not [key for key in TRANSITIONS if key[0] in {Status.SUCCEEDED, Status.CANCELLED}]


def test_only_a_grant_makes_a_job_run():
    assert {key for key, goal in TRANSITIONS.items() if goal is Status.RUNNING} == {
        (Status.QUEUED, Trigger.GRANT)
    }


def test_every_trigger_has_an_arrow_and_one_goal_per_source():
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("trigger", Trigger)
def test_target_and_sources_read_the_table(status: Status, trigger: Trigger):
    known = (status, trigger) in TRANSITIONS
    assert (status in states.sources(trigger)) is known
    if known:
        assert states.target(status, trigger) is TRANSITIONS[status, trigger]
    else:
        with pytest.raises(KeyError):
            states.target(status, trigger)


def test_the_check_takes_these_words_and_no_other():
    with sqlite3.connect(":memory:") as db:
        db.execute(f"CREATE TABLE jobs (status TEXT CHECK ({states.check_sql()}))")
        for status in Status:
            db.execute("INSERT INTO jobs VALUES (?)", (str(status),))
        for word in ("", "QUEUED", "dead", "expired"):
            with pytest.raises(sqlite3.IntegrityError):
                db.execute("INSERT INTO jobs VALUES (?)", (word,))
    db.close()


def test_the_scripts_know_the_indexes_by_their_names():
    prelude = scripts.source("admit")
    named = set(re.findall(r"(\w+) = KEYS\[\d\]", prelude))
    assert named | {"ready"} == set(Index)


def test_the_picture_in_the_readme_is_the_table():
    pictures = re.findall(r"```mermaid\n(.*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert states.mermaid() in pictures
