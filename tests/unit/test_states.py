"""The table of transitions: what it may hold, and who reads it."""

from __future__ import annotations

import re
import sqlite3
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
