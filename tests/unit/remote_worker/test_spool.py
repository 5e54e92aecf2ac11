"""Finished work on the disk: whole or not at all, and one daemon a directory."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from remote_worker import trees
from remote_worker.artifacts import seal
from remote_worker.errors import Misconfigured
from remote_worker.job import Job
from remote_worker.spool import Ending, Report, Spool

JOB = Job(id="j1", type="codex_exec", payload={"a": 1}, attempt=1, lease_id="l1", fence=3)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path)
    spool.open()
    return spool


def test_a_report_comes_back_as_it_was(spool: Spool) -> None:
    directory = spool.directory(JOB)
    (directory / "log").write_text("log")
    report = Report(
        ending=Ending.COMPLETE,
        text="done",
        result={"k": [1, None]},
        artifacts=(seal("logs/x", directory / "log"),),
        references={"log": "logs/x"},
    )
    spool.put(JOB, report)
    assert spool.left() == [(JOB, report)]
    assert (directory / "log").exists()
    spool.drop(JOB)
    assert spool.left() == []
    assert not directory.exists()


def test_what_belongs_to_no_report_is_cleared_away(spool: Spool, tmp_path: Path) -> None:
    crashed = spool.directory(JOB)
    (crashed / "deep").mkdir()
    (crashed / "deep" / "file").write_text("x")
    (crashed / "deep" / "file").chmod(0o400)
    (crashed / "deep").chmod(0o500)
    assert spool.left() == []
    assert list((tmp_path / "jobs").iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 99}', '{"version": 1, "job": {}, "report": {}}']
)
def test_a_report_that_cannot_be_read_does_not_stop_the_daemon(
    spool: Spool, tmp_path: Path, text: str
) -> None:
    (tmp_path / "spool" / "j1.3.json").write_text(text)
    assert spool.left() == []
    assert not (tmp_path / "spool" / "j1.3.json").exists()


def test_a_draft_of_a_daemon_that_was_killed_while_it_wrote_is_cleared_away(
    spool: Spool, tmp_path: Path
) -> None:
    report = Report(ending=Ending.FAIL)
    spool.put(JOB, report)
    (tmp_path / "spool" / "j1.3.tmp").write_text("half a draft")
    (tmp_path / "spool" / "j2.1.tmp").write_text("half a draft")
    assert spool.left() == [(JOB, report)]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["j1.3.json"]


def test_a_disk_that_is_full_keeps_no_draft_and_what_was_written_before(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(ending=Ending.FAIL)
    spool.put(JOB, report)
    monkeypatch.setattr("remote_worker.spool.os.fsync", _full)
    with pytest.raises(OSError, match="No space"):
        spool.put(JOB, Report(ending=Ending.COMPLETE))
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["j1.3.json"]
    assert spool.report(JOB) == report


def test_a_directory_that_resists_is_removed_later_and_never_once_it_is_a_jobs_again(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.directory(JOB)
    spool.directory(replace(JOB, fence=4))
    with monkeypatch.context() as somebody_writes:
        somebody_writes.setattr(trees, "remove", lambda _: None)
        spool.drop(JOB)
        assert spool.left() == []
    again = spool.directory(JOB)
    spool.clear()
    assert list((tmp_path / "jobs").iterdir()) == [again]


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_daemon_is_refused_until_the_first_has_left(spool: Spool, tmp_path: Path) -> None:
    second = Spool(tmp_path)
    with pytest.raises(Misconfigured, match="--work-dir"):
        second.open()
    spool.close()
    second.open()
    second.close()


def test_two_grants_of_a_job_disturb_each_other_in_nothing(spool: Spool) -> None:
    again = Job(id="j1", type="t", payload={}, attempt=1, lease_id="l2", fence=4)
    first, second = spool.directory(JOB), spool.directory(again)
    assert first != second
    spool.drop(JOB)
    assert second.exists()


def test_a_directory_deeper_than_calls_go_is_cleared_away(spool: Spool, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    deep = spool.directory(JOB)
    (deep / "0").mkdir()
    (deep / "link").symlink_to(outside)
    (deep / "shut").mkdir(mode=0o000)
    for _ in range(1200):
        above = deep.with_name("above")
        above.mkdir()
        deep.rename(above / "0")
        above.rename(deep)
    (tmp_path / "jobs" / "linked").symlink_to(outside)
    assert spool.left() == []
    assert list((tmp_path / "jobs").iterdir()) == []
    assert (outside / "kept").exists()
