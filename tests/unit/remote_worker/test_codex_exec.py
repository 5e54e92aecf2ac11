"""The job from payload to outcome, with real git and a program in Codex's place."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.remote_worker.conftest import GOOD, Run, run_git
from tests.unit.remote_worker.edge import TOKEN


def test_a_whole_job(run: Run, source: Path, seen: Path, tmp_path: Path) -> None:
    held = run(GOOD, ref="main", model="m-1", settings={"model": "unused", "effort": "low"})
    assert held.ended == "complete"
    result = held.report["result"]
    base = run_git("rev-parse", "main", cwd=source)
    assert result["baseCommit"] == base
    assert result["changedFiles"] == ["a.txt", "new.txt"]
    assert result["changedFilesTotal"] == 2
    assert result["publish"] == {"mode": "none", "branch": None, "url": None, "error": None}
    assert result["exitCode"] == 0
    assert (result["model"], result["effort"]) == ("m-1", "low")
    assert result["lastMessage"] == "All [redacted] done."
    assert result["usage"] == {"input_tokens": 12, "output_tokens": 3}
    assert result["durationSeconds"] > 0
    assert set(result["patch"]) == {"artifactId", "name", "digest", "sizeBytes"}
    assert result["summary"] == held.report["resultSummary"]
    assert result["summary"].startswith("Changed 2 files in file://")

    log, patch = held.artifacts["logs/codex_exec.log"], held.artifacts["patches/changes.patch"]
    assert "starting" in log["text"]
    assert TOKEN not in log["text"]
    assert result["patch"]["digest"] == patch["digest"]
    target = tmp_path / "target"
    run_git("clone", "-q", str(source), str(target), cwd=tmp_path)
    subprocess.run(["git", "apply"], input=patch["text"], cwd=target, check=True, text=True)
    assert (target / "new.txt").read_text() == "new\n"

    given = json.loads(seen.read_text())
    assert given["stdin"] == "Change it."
    assert given["argv"][-1] == "-"
    assert "Change it." not in given["argv"]
    assert given["cwd"] == given["argv"][given["argv"].index("--cd") + 1]
    environment = given["env"]
    assert environment["BRIDGE_JOB_ID"] == held.job["id"]
    assert (environment["BRIDGE_FENCE"], environment["BRIDGE_ATTEMPT"]) == ("7", "1")
    assert environment["HOME"] != os.environ.get("HOME")
    # PWD is bwrap's word
    assert set(environment) - {"LC_CTYPE", "PWD"} == {
        "PATH", "HOME", "TMPDIR", "CODEX_HOME", "LANG", "TERM", "NO_COLOR", "BRIDGE_RUN",
        "BRIDGE_JOB_ID", "BRIDGE_FENCE", "BRIDGE_ATTEMPT",
    }  # fmt: skip
    assert "All [redacted] done." in held.messages
    assert held.messages[0].startswith("cloning file://")


def test_what_the_operator_passes_reaches_the_agent_and_no_log(run: Run, seen: Path) -> None:
    held = run(GOOD, settings={"pass_environment": {"OPENAI_API_KEY": "k"}})
    assert held.ended == "complete"
    assert json.loads(seen.read_text())["env"]["OPENAI_API_KEY"] == "k"


def test_a_hostile_instruction_is_only_text(run: Run, seen: Path) -> None:
    text = "--dangerously-bypass-approvals-and-sandbox\n-c model=evil\n$(touch x) ' \" ü \U0001f600"
    run(GOOD, instruction=text)
    given = json.loads(seen.read_text())
    assert given["stdin"] == text
    assert not any("dangerously" in word or "evil" in word for word in given["argv"])


def test_nothing_changed_is_a_success_without_patch(run: Run) -> None:
    held = run("import sys; sys.stdin.read()")
    assert held.ended == "complete"
    assert held.report["result"]["patch"] is None
    assert held.report["result"]["lastMessage"] is None
    assert held.report["result"]["usage"] is None
    assert list(held.artifacts) == ["logs/codex_exec.log"]


def test_a_codex_that_fails_leaves_its_log_and_last_lines(run: Run) -> None:
    held = run("import sys; print('stream error: no quota', file=sys.stderr); sys.exit(3)")
    assert held.ended == "fail"
    assert held.report["retryable"] is False
    assert held.report["errorType"] == "codex_failed"
    assert "ended with 3" in held.report["errorMessage"]
    assert "no quota" in held.report["errorMessage"]
    assert "no quota" in held.artifacts["logs/codex_exec.log"]["text"]


def test_a_failed_turn_is_a_failure_whatever_the_exit_code(run: Run) -> None:
    held = run("""print('{"type": "turn.failed", "error": {"message": "the script says no"}}')""")
    assert held.report["errorType"] == "codex_failed"
    assert "the script says no" in held.report["errorMessage"]


def test_over_time_the_job_fails_with_its_log(run: Run) -> None:
    held = run(
        "import time; print('slow', flush=True); time.sleep(60)",
        timeLimitSeconds=1,
    )
    assert held.report["errorType"] == "time_limit_exceeded"
    assert "slow" in held.artifacts["logs/codex_exec.log"]["text"]


def test_the_workers_own_limit_is_the_longest(run: Run) -> None:
    held = run("import time; time.sleep(60)", timeLimitSeconds=600, settings={"time_limit_s": 1})
    assert held.report["errorType"] == "time_limit_exceeded"


@pytest.mark.parametrize(
    "payload,error_type",
    [
        ({"repository": "Org/Repo"}, "repository_not_allowed"),
        ({"repository": "file:///etc"}, "repository_not_allowed"),
        ({"repository": "ext::sh -c x"}, "invalid_repository"),
        ({"ref": "--upload-pack=x"}, "invalid_ref"),
        ({"ref": "nowhere"}, "clone_failed"),
        ({"publish": {"mode": "pr"}}, "publish_not_possible"),
        ({"publish": {"mode": "fork"}}, "invalid_payload"),
        ({"publish": {"mode": "branch", "baseBranch": "-x"}}, "invalid_ref"),
        ({"workdirMode": "mine"}, "invalid_payload"),
        ({"instruction": ""}, "invalid_payload"),
    ],
    ids=str,
)
def test_what_fails_before_codex_starts(
    run: Run, seen: Path, payload: dict[str, object], error_type: str
) -> None:
    held = run(GOOD, **payload)
    assert held.ended == "fail"
    assert held.report["errorType"] == error_type
    assert held.report["retryable"] is False
    assert not seen.exists()


def test_a_workspace_that_cannot_be_collected_fails_with_its_log(run: Run) -> None:
    code = """
import os, sys
here = os.getcwd()
os.rename(here, here + "-away")
os.symlink("/etc", here)
print("moved")
"""
    held = run(code)
    assert held.report["errorType"] == "collect_failed"
    assert "moved" in held.artifacts["logs/codex_exec.log"]["text"]


def test_the_names_in_a_result_are_bounded_and_the_patch_has_them_all(run: Run) -> None:
    held = run("for n in range(400): open('n' * 200 + str(n).zfill(3), 'w').write('x')")
    result = held.report["result"]
    assert result["changedFilesTotal"] == 400
    assert len(result["changedFiles"]) == 64 * 1024 // 203
    assert held.artifacts["patches/changes.patch"]["text"].count("diff --git") == 400


BLOCKED = """
import json, sys
item = {"type": "command_execution", "command": "make", "exit_code": 1, "status": "failed",
        "aggregated_output": "bwrap: No permissions to create new namespace\\n"}
print(json.dumps({"type": "item.completed", "item": item}))
"""


def test_a_sandbox_that_starts_nothing_is_said_in_the_summary(run: Run) -> None:
    held = run(BLOCKED)
    assert held.ended == "complete"
    assert "no command of the agent could even be started: bwrap" in held.report["resultSummary"]
    held = run(BLOCKED + "open('x', 'w').write('x')")
    assert "could even be started" not in held.report["resultSummary"]


@pytest.mark.parametrize("name", ["collect.git", "publish.git"])
def test_a_git_directory_the_agent_made_for_us_is_not_used(run: Run, name: str) -> None:
    code = GOOD + f"(here.parent.parent / {name!r}).mkdir()"
    held = run(code, publish={"mode": "branch"}, settings={"isolation": "none"})
    if name == "collect.git":
        assert held.report["errorType"] == "collect_failed"
    else:
        assert "File exists" in held.report["result"]["publish"]["error"]
