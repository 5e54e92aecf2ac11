"""What a payload may say, and that nothing of it becomes an option (attack 109)."""

from pathlib import Path

import pytest

from remote_worker import codex
from remote_worker.errors import JobFailed
from remote_worker.handlers.codex_payload import parse_task
from remote_worker.settings import Settings

GOOD: dict[str, object] = {"repository": "Org/Repo", "instruction": "Do it."}


def test_the_least_and_the_defaults() -> None:
    task = parse_task(GOOD)
    assert task.repository.canonical == "github.com/org/repo"
    assert (task.ref, task.model, task.effort, task.time_limit_s, task.depth) == (
        None, None, None, None, 1,
    )  # fmt: skip


def test_everything() -> None:
    task = parse_task(
        GOOD
        | {
            "ref": "main",
            "model": "gpt-5.1-codex",
            "effort": "high",
            "timeLimitSeconds": 60,
            "depth": 0,
            "workdirMode": "fresh_clone",
            "publish": {"mode": "none"},
            "requiredCapabilities": ["codex"],
            "somethingNew": 1,
        }
    )
    assert (task.ref, task.model, task.effort, task.time_limit_s, task.depth) == (
        "main", "gpt-5.1-codex", "high", 60, 0,
    )  # fmt: skip


def test_model_and_effort_may_stand_under_codex() -> None:
    task = parse_task(GOOD | {"codex": {"model": "m1", "effort": "low"}, "model": "m2"})
    assert (task.model, task.effort) == ("m2", "low")


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": None},
        {"instruction": " \n"},
        {"instruction": 3},
        {"instruction": "a\0b"},
        {"instruction": "\ud800"},
        {"instruction": "ä" * 140_000},
        {"ref": 5},
        {"model": "--dangerously-bypass-approvals-and-sandbox"},
        {"model": "a b"},
        {"model": ["m"]},
        {"effort": 'high" sandbox_mode="x'},
        {"effort": "HIGH"},
        {"codex": {"model": "-c"}},
        {"timeLimitSeconds": 0},
        {"timeLimitSeconds": True},
        {"timeLimitSeconds": "60"},
        {"timeLimitSeconds": 10**9},
        {"depth": -1},
        {"depth": 1.5},
        {"workdirMode": "mine"},
        {"workdirMode": "elsewhere"},
        {"publish": "branch"},
        {"publish": {"mode": "fork"}},
        {"publish": {"mode": 1}},
        {"publish": {"mode": ["pr"]}},
        {"publish": {"mode": "pr", "title": "a\nb"}},
        {"publish": {"mode": "pr", "title": "a" * 201}},
        {"publish": {"mode": "pr", "body": "a\0b"}},
        {"publish": {"mode": "pr", "body": "\ud800"}},
        {"publish": {"mode": "pr", "commitMessage": 1}},
        {"publish": {"mode": "pr", "baseBranch": ["main"]}},
    ],
    ids=str,
)
def test_what_is_refused_before_anything_runs(change: dict[str, object]) -> None:
    with pytest.raises(JobFailed) as failure:
        parse_task(GOOD | change)
    assert failure.value.error_type == "invalid_payload"
    assert not failure.value.retryable


@pytest.mark.parametrize("repository", [None, 3, "", "--upload-pack=x", ["Org/Repo"]])
def test_a_repository_is_named_once_and_well(repository: object) -> None:
    with pytest.raises(JobFailed) as failure:
        parse_task(GOOD | {"repository": repository, "repo": "Org/Repo"})
    assert failure.value.error_type == "invalid_repository"


def test_the_command_line_holds_nothing_of_the_instruction_and_the_workers_sandbox() -> None:
    settings = Settings(
        url="https://edge.example",
        token_file=Path("t"),
        worker_id="w",
        work_dir=Path("w"),
        codex_sandbox="read-only",
    )
    argv = codex.exec_argv(settings, repo=Path("/w/repo"), model="m", effort="high")
    assert argv == [
        "codex", "exec", "--json", "--color", "never", "--ephemeral", "--skip-git-repo-check",
        "--sandbox", "read-only", "--cd", "/w/repo", "-c", 'approval_policy="never"',
        "--model", "m", "-c", 'model_reasoning_effort="high"', "-",
    ]  # fmt: skip
    bare = codex.exec_argv(settings, repo=Path("/w/repo"), model=None, effort=None)
    assert "--model" not in bare
    assert not any("effort" in word for word in bare)
