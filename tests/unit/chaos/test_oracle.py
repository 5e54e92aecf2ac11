"""The oracle reports each promise that is broken by hand, and none when all were kept."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos import promises
from tests.chaos.__main__ import judge as verdict
from tests.chaos.facts import Entry, Facts, Fault, Rebuild, Sample, Sent
from tests.chaos.measures import describe, unexplained
from tests.chaos.oracle import INVARIANTS, figures, judge
from tests.chaos.report import PartReport, Violation
from tests.unit.chaos.healthy import HEALTHY, RESULT, call, granted

ROOT: Final = Path(__file__).resolve().parents[3]

Damage = Callable[[Facts], Facts]


def change(field: str, where: Callable[[Any], bool], **values: Any) -> Damage:
    """Change the rows of one kind that match; there must be one."""

    def damage(facts: Facts) -> Facts:
        rows = getattr(facts, field)
        assert any(map(where, rows))
        changed = tuple(replace(row, **values) if where(row) else row for row in rows)
        return replace(facts, **{field: changed})

    return damage


def add(field: str, *rows: Any) -> Damage:
    """Add rows of one kind."""
    return lambda facts: replace(facts, **{field: (*getattr(facts, field), *rows)})


def drop(field: str, where: Callable[[Any], bool]) -> Damage:
    """Take the rows of one kind that match away; there must be one."""

    def damage(facts: Facts) -> Facts:
        left = tuple(row for row in getattr(facts, field) if not where(row))
        assert len(left) < len(getattr(facts, field))
        return replace(facts, **{field: left})

    return damage


def put(**values: Any) -> Damage:
    """Say something else of the whole run."""
    return lambda facts: replace(facts, **values)


def job(name: str) -> Callable[[Any], bool]:
    return lambda row: row.id == name


def lease(name: str) -> Callable[[Any], bool]:
    return lambda row: row.lease_id == name


def event(name: str, seq: int) -> Callable[[Any], bool]:
    return lambda row: (row.job_id, row.seq) == (name, seq)


def ghost(op: str, at: float, lease_id: str = "l1", **more: Any) -> Damage:
    return add("calls", call(op, at, "done", lease_id, **more))


#: How each promise may be broken, and one way to see that.
BROKEN: Final[list[tuple[str, str, Damage]]] = [
    ("I1", "lost", add("calls", call("send", 9.0, "never", what={}))),
    ("I1", "lost", add("calls", call("create", 9.0, what={}, answer={"id": "never"}))),
    ("I1", "doubled: 2 rows", change("jobs", job("waits"), task_id="done")),
    ("I1", "doubled: 2 jobs", change("jobs", job("waits"), payload={"tag": "done"})),
    ("I1", "status", change("jobs", job("waits"), status="granting")),
    ("I1", "broker", put(left_in_broker=1)),
    ("I2", "2 ends told", change("events", event("done", 3), message="Job completed")),
    ("I2", "0 ends told", change("jobs", job("waits"), status="failed")),
    ("I2", "became", change("jobs", job("done"), result=2)),
    ("I3", "fence 3", change("jobs", job("done"), fence=3)),
    ("I3", "open leases", change("attempts", lease("l2"), ended_at=None)),
    ("I3", "overlap", change("attempts", lease("l2"), started_at=10.5)),
    ("I3", "unknown lease", add("calls", granted("k7", 12.0, "l9", 2))),
    ("I3", "fell", add("samples", Sample(at=16.0, fences={"done": 1}))),
    ("I4", "accepted; lease failed", ghost("complete", 12.0, what={"result": 7})),
    ("I4", "accepted; lease failed", ghost("release", 12.0)),
    ("I4", "never granted", ghost("complete", 12.0, "l9", what={"result": 7})),
    ("I4", "event 6", change("events", event("done", 6), fence=1)),
    ("I4", "extended", ghost("heartbeat", 40.0, what={"lease_s": 5})),
    ("I5", "is gone", change("attempts", lease("l2"), outcome=None, ended_at=None)),
    ("I5", "acknowledged result", change("jobs", job("done"), result=2)),
    ("I5", "will not hear", drop("effects", lambda row: row.job_id == "done")),
    ("I6", "two answers", add("calls", granted("k2", 13.0, "l1", 1))),
    ("I6", "answered 409", ghost("complete", 15.0, "l2", what={"result": RESULT}, status=409)),
    ("I6", "two ids", ghost("events", 13.7, "l2", answer={"ids": {"6": "another"}})),
    ("I6", "there twice", change("events", event("done", 5), worker_seq=0)),
    ("I7", "told 0 times", drop("events", event("done", 7))),
    ("I7", "half ended", change("attempts", lease("l2"), ended_at=None)),
    ("I7", "nobody's call", drop("calls", lambda one: one.op == "fail")),
    ("I7", "nobody's call", change("calls", lambda one: one.op == "complete", what={"result": 8})),
    ("I7", "outbox stores []", drop("effects", lambda row: row.job_id == "cancelled")),
    ("I8", "sees FAILURE", put(results={**HEALTHY.results, "done": {"status": "FAILURE"}})),
    ("I8", "sees None", put(results={k: v for k, v in HEALTHY.results.items() if k != "dead"})),
    ("I8", "sees SUCCESS", put(results={**HEALTHY.results, "waits": {"status": "SUCCESS"}})),
    ("I8", "another", put(results={**HEALTHY.results, "done": {"status": "SUCCESS", "result": 2}})),
    ("I8", "under 0 ids", put(sent=())),
    ("I8", "under 2 ids", add("sent", Sent(id="link-2", parent_id="done", task="note"))),
    ("I9", "is attempt 2", change("attempts", lease("l3"), attempt=2)),
    ("I9", "1 of 0", change("jobs", job("done"), max_attempts=0)),
    ("I9", "began", change("attempts", lease("l2"), started_at=11.2)),
    ("I10", "too early", change("attempts", lease("l3"), ended_at=25.0)),
    ("I10", "undelivered", change("attempts", lease("l3"), ended_at=25.0, outcome="undelivered")),
    ("I11", "not in force", put(pointers={})),
    ("I11", "scheduled", change("entries", lambda one: one.job_id == "waits", job_id="done")),
    ("I11", "generation 3", change("entries", lambda one: one.job_id == "waits", generation=3)),
    ("I11", "as []", put(entries=())),
    (
        "I11",
        "as ['s",
        add("entries", Entry(queue="remote", generation=4, index="ready", job_id="waits")),
    ),
    ("I12", "cancel answered", change("jobs", job("cancelled"), status="succeeded")),
    ("I13", "before its eta", change("attempts", lease("l1"), started_at=9.2)),
    (
        "I13",
        "after it expired",
        change("attempts", lease("l1"), job_id="cancelled", started_at=101),
    ),
    ("I13", "may not run", change("jobs", job("done"), type="gpu")),
    ("I14", "numbers", drop("events", event("done", 5))),
    ("I14", "younger", change("events", event("done", 5), created_at=11.0)),
    ("I14", "read", drop("calls", lambda one: one.op == "read_events" and one.asked_at == 15.0)),
    ("I15", "not what its row says", put(files={})),
    ("I15", "not what its row says", put(files={"sha256/ab": ("ab" * 32, 2)})),
    ("I15", "is gone", change("artifacts", job("file-1"), fence=1)),
    ("I15", "never had", put(artifacts=())),
    ("I16", "became succeeded", change("jobs", job("poison"), status="succeeded")),
    ("I16", "0 rejected", change("jobs", job("nameless"), reason=None)),
    ("I17", "2 of 1", add("samples", Sample(at=13.0, running={"w": 2}))),
    ("I18", "of revoked", change("calls", lambda one: one.client == "gone", asked_at=56.0)),
    ("I19", "stuck: queued", change("jobs", job("waits"), next_attempt_at=None)),
    ("I19", "stuck: running", change("jobs", job("waits"), status="running")),
    ("I20", "s late", change("attempts", lease("l3"), ended_at=34.0)),
    ("I21", "waits", change("effects", lambda row: row.job_id == "dead", done_at=None)),
    ("I21", "given up", change("effects", lambda row: row.job_id == "dead", parked_at=40.0)),
    ("I22", "1000 jobs", put(rebuilds=(Rebuild(jobs=1000, seconds=1.5),))),
    ("I23", "half", put(wakes=(0.02, 0.2, 0.4))),
    (
        "I24",
        "under its holder",
        lambda facts: change("attempts", lease("l3"), ended_at=25.0)(
            add(
                "faults",
                Fault(kind="ledger frozen", began_at=20.9, ended_at=24.0, in_flight=True),
            )(facts)
        ),
    ),
    ("I25", "1 of 4", ghost("heartbeat", 13.0, "l2", what={"lease_s": 10}, status=503)),
]


def test_what_was_kept_is_not_reported():
    assert judge(HEALTHY) == []


def test_only_a_message_that_the_broker_was_told_to_drop_may_be_gone():
    asked = [call("send", 9.0, "gone", what=what) for what in ({"expires": 12.0}, {})]
    for sent, by_broker, lost in ((asked[0], True, 0), (asked[0], False, 1), (asked[1], True, 1)):
        facts = put(broker_expires=by_broker)(add("calls", sent)(HEALTHY))
        assert len(list(INVARIANTS["I1"](facts))) == lost


@pytest.mark.parametrize(
    "name, words, damage", BROKEN, ids=[f"{name}-{words}" for name, words, _ in BROKEN]
)
def test_a_broken_promise_is_reported_by_its_number(name: str, words: str, damage: Damage):
    found = list(INVARIANTS[name](damage(HEALTHY)))
    assert found
    assert {violation.invariant for violation in found} == {name}
    assert any(words in violation.evidence for violation in found), found


def test_every_promise_is_broken_once_at_least():
    assert {name for name, _, _ in BROKEN} == set(INVARIANTS)
    assert len(INVARIANTS) == 25


def test_figures_count_what_the_suite_is_judged_by():
    kept = figures(HEALTHY, [])
    assert kept["stale_rejected"] == 2
    assert kept["faults_in_flight"] == 2
    zero = ("lost", "doubled", "double_terminal", "acknowledged_result_lost", "stale_accepted")
    assert not any(kept[name] for name in zero)
    broken = {
        "lost": BROKEN[0][2],
        "double_terminal": BROKEN[6][2],
        "acknowledged_result_lost": change("jobs", job("done"), result=2),
        "stale_accepted": ghost("complete", 12.0, what={"result": 7}),
    }
    for name, damage in broken.items():
        facts = damage(HEALTHY)
        assert figures(facts, judge(facts))[name] == 1


def test_the_oracle_knows_nothing_of_the_product():
    """It must not share a mistake with what it judges."""
    look = (
        "import sys, tests.chaos.oracle, tests.chaos.reading, tests.chaos.promises\n"
        "print([name for name in sys.modules"
        " if name.partition('.')[0] in {'broker', 'edge_api', 'remote_worker'}])"
    )
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_promise_log_tells_what_is_known_and_what_is_not(tmp_path: Path):
    flight = promises.Flight()
    log = promises.PromiseLog(tmp_path, "w", flight)
    with log.call("complete", job="a", lease="l", what={"result": 1}) as pending:
        assert flight.open == 1
        [open_call] = promises.read(tmp_path)
        assert open_call.ambiguous
        assert open_call.told_at is None
        pending.told(200, {"status": "succeeded"})
    with pytest.raises(ConnectionError), log.call("fail", job="a", lease="l", what={}):
        raise ConnectionError
    with log.call("claim", what={}):
        assert flight.open == 0
    log.close()
    done, failed, claim = promises.read(tmp_path)
    assert (done.accepted, done.what, done.answer) == (True, {"result": 1}, {"status": "succeeded"})
    assert (failed.ambiguous, failed.accepted, failed.refused) == (True, False, False)
    assert claim.told_at is not None


def test_a_not_now_without_a_moment_is_reported():
    busy = call("claim", 12.0, what={"key": "k"}, status=503)
    assert list(unexplained(HEALTHY)) == []
    [found] = unexplained(add("calls", busy, replace(busy, answer={"retry_after": "1"}))(HEALTHY))
    assert found.evidence == "claim: 503, and no moment"
    [found] = unexplained(add("calls", replace(busy, status=500))(HEALTHY))
    assert found.evidence == "claim: 500"


def test_a_run_is_described_by_what_happened():
    flush = Fault(kind="reservations flushed", began_at=12.1, ended_at=12.2, in_flight=True)
    told = describe(add("faults", flush)(HEALTHY))
    assert told["kept through a lost index"] == "100.00 % of 1"
    assert told["recovered from edge in s"] == "p50 0.00, max 0.00 of 1"
    assert told["leases per job"] == 0.5
    assert told["links sent more than once"] == 0


def report(violations: tuple[Violation, ...] = (), **said: float) -> PartReport:
    return PartReport("part", 1.0, said, violations)


@pytest.mark.parametrize(
    "reports, said",
    [
        ([report(lost=0, stale_rejected=3, faults_in_flight=1)], []),
        ([report(lost=0), report(lost=2)], ["lost is 2, not 0"]),
        ([report(stale_rejected=0), report(stale_rejected=1)], []),
        ([report(faults_in_flight=0)], ["faults_in_flight is 0"]),
        ([report((Violation("I3", "a", "two leases"),))], ["part: I3 a two leases"]),
    ],
)
def test_a_run_is_judged_by_its_figures_and_violations(reports: list[PartReport], said: list[str]):
    assert verdict(reports) == said
