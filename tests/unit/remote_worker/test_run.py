"""One job's life: every ending, reported once, from a record on the disk."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from remote_worker.client import Client
from remote_worker.errors import Interrupted, Interruption, JobFailed
from remote_worker.handlers.context import Context, Handler, Outcome
from remote_worker.job import Job, parse_job
from remote_worker.lease import Terms
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Report, Spool
from tests.processes import until
from tests.unit.remote_worker.edge import Answer, FakeEdge, Held, error_page, refusal

SECRET = "a-secret-of-the-worker"


class World:
    """A worker without a daemon around it."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.stopping = threading.Event()
        self.drained = threading.Event()
        self.now = 0.0
        settings.work_dir.mkdir()
        self.spool = Spool(settings.work_dir)
        self.spool.open()

    def run(self, held: Held, handlers: Mapping[str, Handler] | Handler) -> JobRun:
        if not isinstance(handlers, Mapping):
            handlers = {held.job["type"]: handlers}
        return JobRun(
            parse_job(held.job),
            client=self.client,
            settings=self.settings,
            spool=self.spool,
            handlers=handlers,
            redactor=Redactor([SECRET]),
            terms=Terms(lease_s=60, interval_s=0.02, clock=lambda: self.now),
            stopping=self.stopping.is_set,
            on_drain=self.drained.set,
        )

    def left(self) -> list[Path]:
        return [path for path in self.settings.work_dir.rglob("*") if path.name != "lock"
                and path.name not in ("spool", "jobs")]  # fmt: skip


@pytest.fixture
def world(client: Client, make_settings: Callable[..., Settings]) -> World:
    return World(client, make_settings())


def work(context: Context) -> Outcome:
    """Do what a good handler does."""
    path = context.directory / "log"
    path.write_text("the log")
    context.step(f"working with {SECRET}")
    context.events.append("info", "payload", {"key": SECRET})
    return Outcome(
        summary=f"done with {SECRET}",
        result={"log": None, "patch": None, "note": SECRET},
        files=(("logs/x.log", path),),
        references={"log": "logs/x.log"},
    )


def test_a_good_end(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    assert world.run(held, work).run()
    assert held.ended == "complete"
    assert held.report["resultSummary"] == "done with [redacted]"
    log = held.report["result"]["log"]
    assert log["artifactId"] == "artifact-logs/x.log"
    assert log["digest"] == held.artifacts["logs/x.log"]["digest"]
    assert (log["name"], log["sizeBytes"]) == ("logs/x.log", 7)
    assert held.report["result"]["patch"] is None
    assert held.report["result"]["note"] == "[redacted]"
    assert held.messages == ["working with [redacted]", "payload"]
    assert held.events[2]["payload"] == {"key": "[redacted]"}
    assert world.left() == []


def test_the_first_heartbeat_is_before_everything_and_the_last_after(
    world: World, edge: FakeEdge
) -> None:
    held = edge.offer("echo")
    before: list[int] = []

    def slow(context: Context) -> Outcome:
        before.append(len(edge.asked("/heartbeat")))
        until(lambda: len(edge.asked("/heartbeat")) >= 3)
        return work(context)

    edge.instead("/upload", error_page(502), times=3)
    world.run(held, slow).run()
    # on a busy machine there may be more of them by then
    assert before[0] >= 1
    paths = [call.path.rpartition("/")[2] for call in edge.calls]
    assert paths[0] == "heartbeat"
    assert paths[-1] in ("complete", "heartbeat")


def test_heartbeats_go_on_until_the_report_is_answered(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    during = threading.Event()

    def pause(_seconds: float, _hurry: object) -> None:
        seen = len(edge.asked("/heartbeat"))
        until(lambda: len(edge.asked("/heartbeat")) > seen + 1)
        during.set()

    world.client._pace = type(world.client._pace)(sleep=pause)
    edge.instead("/complete", error_page(502), times=2)
    assert world.run(held, work).run()
    assert during.is_set()


def test_a_grant_that_is_gone_runs_nothing(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    held.lost = True
    assert world.run(held, lambda _: pytest.fail("ran")).run()
    assert {call.path.rpartition("/")[2] for call in edge.calls} == {"heartbeat"}


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_with_its_files(
    world: World, edge: FakeEdge, caplog: pytest.LogCaptureFixture, retryable: bool
) -> None:
    caplog.set_level(logging.INFO, logger="remote_worker.run")
    held = edge.offer("echo")

    def fail(context: Context) -> Outcome:
        path = context.directory / "log"
        path.write_text("why")
        raise JobFailed(
            f"no luck with {SECRET}\nand more",
            error_type="bad_luck",
            retryable=retryable,
            files=[("logs/x.log", path), ("logs/absent", context.directory / "absent")],
        )

    assert world.run(held, fail).run()
    assert held.ended == "fail"
    assert held.report["errorMessage"] == "no luck with [redacted]\nand more"
    assert "failed: bad_luck: no luck with [redacted]" in caplog.messages
    assert held.report["errorType"] == "bad_luck"
    assert held.report["retryable"] is retryable
    assert [a["text"] for a in held.artifacts.values()] == ["why"]
    assert world.left() == []


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_link_in_the_place_of_a_file_is_no_file(
    world: World, edge: FakeEdge, tmp_path: Path, *, ends_well: bool
) -> None:
    """Without a box a program could leave one; what it leads to is not its to send."""
    (tmp_path / "elsewhere").write_text("private")

    def replaced(context: Context) -> Outcome:
        (context.directory / "log").symlink_to(tmp_path / "elsewhere")
        files = (("logs/x.log", context.directory / "log"),)
        if ends_well:
            return Outcome(
                summary="s", result={"log": None}, files=files, references={"log": "logs/x.log"}
            )
        raise JobFailed("it failed", error_type="its_own", files=files)

    held = edge.offer("echo")
    assert world.run(held, replaced).run()
    assert held.ended == "fail"
    assert held.report["errorType"] == ("artifact_lost" if ends_well else "its_own")
    assert held.artifacts == {}
    assert world.left() == []


def test_a_bug_fails_the_job_and_not_the_daemon(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    assert world.run(held, lambda _: Outcome(summary=str(1 // 0), result={})).run()
    assert held.report["errorType"] == "ZeroDivisionError"
    assert held.report["retryable"] is False


@pytest.mark.parametrize("job_type", ["codex_skill", "other"])
def test_an_unsupported_type_fails_for_good(world: World, edge: FakeEdge, job_type: str) -> None:
    held = edge.offer(job_type)
    assert world.run(held, {"codex_exec": work}).run()
    assert held.report["errorType"] == "unsupported_job_type"
    assert held.report["retryable"] is False
    assert repr(job_type) in held.report["errorMessage"]
    assert "codex_exec" in held.report["errorMessage"]


@pytest.mark.parametrize(
    "wrong",
    [{"type": 5}, {"type": "x" * 65}, {"payload": []}, {"attempt": "1"}, {"fence": -1}],
    ids=str,
)
def test_a_job_that_makes_no_sense_fails_for_good(
    world: World, edge: FakeEdge, wrong: dict[str, object]
) -> None:
    good = edge.offer("echo").job
    held = edge.offer_raw(good | wrong)
    assert world.run(held, {"echo": lambda _: pytest.fail("ran")}).run()
    assert held.report["errorType"] == "bad_job"
    assert next(iter(wrong)) in held.report["errorMessage"]


def wait_for_the_end(context: Context) -> Outcome:
    why = until(context.interrupt)
    raise Interrupted(why)


def test_a_cancel_is_acknowledged(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    held.cancel = True
    assert world.run(held, wait_for_the_end).run()
    assert held.ended == "cancel/ack"
    assert world.left() == []


def test_a_stop_gives_the_job_back(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    world.stopping.set()
    assert world.run(held, wait_for_the_end).run()
    assert held.ended == "release"
    assert world.left() == []


def test_a_lost_lease_is_reported_by_nothing(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")

    def lose(context: Context) -> Outcome:
        held.lost = True
        until(lambda: context.interrupt() is Interruption.LEASE_LOST)
        raise Interrupted(Interruption.LEASE_LOST)

    assert world.run(held, lose).run()
    verbs = {call.path.rpartition("/")[2] for call in edge.calls}
    assert verbs <= {"heartbeat", "events"}
    assert world.left() == []


def test_a_drain_order_reaches_the_daemon(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    edge.drain = True
    world.run(held, work).run()
    assert world.drained.is_set()


def test_an_edge_that_is_away_for_long_keeps_the_report_in_the_spool(
    world: World, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = edge.offer("echo")

    def away(_seconds: float, _hurry: object) -> None:
        world.now += 1000

    monkeypatch.setattr(world.client, "_pace", type(world.client._pace)(sleep=away))
    edge.instead("/complete", error_page(502), times=999)
    assert not world.run(held, work).run()
    assert held.ended is None
    names = {path.name for path in world.left()}
    assert f"{held.job['id']}.7.json" in names
    assert "log" in names


@pytest.mark.parametrize("stands", [True, False], ids=["its lease stands", "its lease is gone"])
def test_an_edge_that_is_away_for_half_an_hour_hears_of_it_when_it_is_back(
    world: World, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch, *, stands: bool
) -> None:
    held = edge.offer("echo")
    back = 1800.0
    seen: list[str | None] = []

    def away(seconds: float, _hurry: object) -> None:
        """Let the time pass by, and the edge come back after half an hour."""
        world.now += seconds
        seen.append(job_run.lease.interruption())
        if world.now >= back and edge.silent:
            held.lost = not stands
            edge.silent = False

    def finish(context: Context) -> Outcome:
        edge.silent = True
        return work(context)

    monkeypatch.setattr(
        world.client, "_pace", type(world.client._pace)(sleep=away, draw=lambda _low, high: high)
    )
    job_run = world.run(held, finish)
    assert job_run.run()
    # the lease ran out by our own clock long before, and finished work waits for the edge's word
    assert seen[0] is None
    assert Interruption.LEASE_LOST in seen
    assert back <= world.now < back + 60
    assert held.ended == ("complete" if stands else None)
    assert bool(held.artifacts) == stands
    assert world.left() == []


LeftBehind = tuple[Held, Job, Report]


@pytest.fixture
def left_behind(world: World, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch) -> LeftBehind:
    """Give what a daemon leaves that was killed between the spool and the report."""
    held = edge.offer("echo")
    with monkeypatch.context() as patch:
        patch.setattr("remote_worker.report.Reporter.send", lambda *_, **__: False)
        assert not world.run(held, work).run()
    assert edge.asked("/upload") == []
    [(job, report)] = world.spool.left()
    return held, job, report


def test_a_report_whose_files_are_gone_is_a_failure_for_another_try(
    world: World, left_behind: LeftBehind
) -> None:
    held, _, report = left_behind
    report.artifacts[0].path.unlink()
    assert world.run(held, {}).replay(report)
    assert (held.ended, held.report["errorType"]) == ("fail", "artifact_lost")
    assert held.report["retryable"] is True


def test_the_next_daemon_reports_what_was_finished(world: World, left_behind: LeftBehind) -> None:
    held, job, report = left_behind
    assert world.run(held, {}).replay(report)
    assert job.lease_id == held.job["leaseId"]
    assert held.ended == "complete"
    assert held.report["result"]["log"]["artifactId"] == "artifact-logs/x.log"
    assert held.artifacts["logs/x.log"]["text"] == "the log"
    assert world.left() == []


def test_the_next_daemon_reports_nothing_under_a_lost_lease(
    world: World, edge: FakeEdge, left_behind: LeftBehind
) -> None:
    held, _, report = left_behind
    held.lost = True
    asked = len(edge.calls)
    assert world.run(held, {}).replay(report)
    assert [call.path.rpartition("/")[2] for call in edge.calls[asked:]] == ["heartbeat"]
    assert world.left() == []


def test_an_edge_that_is_away_at_the_start_leaves_the_report_where_it_is(
    world: World, edge: FakeEdge, left_behind: LeftBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _, report = left_behind
    monkeypatch.setattr("remote_worker.lease._TAKE_UP_S", 0.0)
    edge.instead("/heartbeat", error_page(502), times=9)
    assert not world.run(held, {}).replay(report)
    assert len(world.spool.left()) == 1


def test_a_report_is_on_the_disk_before_it_is_sent(
    world: World, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = edge.offer("echo")
    seen: list[dict[str, object]] = []
    upload = world.client.upload

    def look(*args: object, **more: object) -> str:
        path = world.settings.work_dir / "spool" / f"{held.job['id']}.7.json"
        seen.append(json.loads(path.read_text()))
        return upload(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(world.client, "upload", look)
    world.run(held, work).run()
    assert seen[0]["report"]["text"] == "done with [redacted]"  # type: ignore[index]


def test_a_full_disk_does_not_cost_the_report(
    world: World, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = edge.offer("echo")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.spool, "put", full)
    assert world.run(held, work).run()
    assert held.ended == "complete"


@pytest.mark.parametrize(
    "path,status,code",
    [("/complete", 422, "invalid_queue_payload"), ("/upload", 413, "artifact_too_large")],
)
def test_a_result_the_edge_does_not_take_is_a_failure_it_takes(
    world: World, edge: FakeEdge, path: str, status: int, code: str
) -> None:
    held = edge.offer("echo")
    edge.instead(path, refusal(status, code))
    assert world.run(held, work).run()
    assert held.ended == "fail"
    assert code in held.report["errorMessage"]
    assert held.report["retryable"] is False


def test_a_refused_credential_leaves_the_report_for_a_mended_one(
    world: World, edge: FakeEdge
) -> None:
    held = edge.offer("echo")
    edge.instead("/complete", refusal(401, "worker_auth_failed"), times=9)
    assert not world.run(held, work).run()
    assert held.ended is None
    assert len(world.spool.left()) == 1


def test_events_that_are_not_taken_cost_the_job_nothing(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")
    edge.instead("/events", error_page(500), times=999)
    run = world.run(held, work)
    assert run.run()
    assert held.ended == "complete"
    assert run._events.lost == 2


def test_events_go_in_batches_of_at_most_a_hundred(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")

    def chatter(context: Context) -> Outcome:
        for number in range(250):
            context.events.append("info", f"line {number}")
        return work(context)

    edge.instead("/events", Answer(cut=True))
    assert world.run(held, chatter).run()
    assert max(len(call.body["events"]) for call in edge.asked("/events")) <= 100
    assert held.messages[:250] == [f"line {number}" for number in range(250)]


def test_events_wait_in_bounded_memory(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")

    def shout(context: Context) -> Outcome:
        for number in range(5000):
            context.events.append("info", str(number))
        return work(context)

    run = world.run(held, shout)
    run.run()
    assert run._events.lost > 2000
    assert held.messages[-4] == "4999"
    left_out = held.events[max(held.events)]
    assert left_out["message"] == "Events were left out"
    assert left_out["payload"] == {"count": run._events.lost}


def test_a_line_that_is_too_long_says_so(world: World, edge: FakeEdge) -> None:
    held = edge.offer("echo")

    def shout(context: Context) -> Outcome:
        context.events.append("info", "x" * 8003)
        return work(context)

    assert world.run(held, shout).run()
    assert held.messages[0] == "x" * 8000 + "… [cut: 3 characters left out]"
