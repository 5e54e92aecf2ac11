"""Old daemons still work: the base contract, spoken by a script of its own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Process
from tests.stacks import start_up

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
DAEMON = Path(__file__).with_name("field_daemon.py")


def test_a_daemon_of_the_field_completes_jobs(process: Callable[..., Process], tmp_path: Path):
    stack = start_up(process, tmp_path / "data", "--no-flower")
    made = stack.operator.post(
        "/workers/tokens",
        {"workerId": "old-1", "allowedJobTypes": ["codex_exec"], "allowedRepositories": ["Org/*"]},
    )
    token = made.json()["token"]
    with stack.orchestrator() as app:
        payload = {"repository": "https://github.com/Org/App.git", "instruction": "x"}
        sent = [app.send_task("codex_exec", kwargs=payload, queue="remote") for _ in range(3)]
        other = stack.operator.post(
            "/jobs", {"type": "codex_exec", "payload": {"repository": "Other/App"}}
        ).json()
        daemon = process([sys.executable, DAEMON, stack.told["edgeUrl"], token, "old-1", "3"])
        assert daemon.wait(60) == 0, daemon.output()
        assert [one.get(timeout=20) for one in sent] == ["done by hand"] * 3
    assert stack.operator.get(f"/jobs/{other['id']}")["status"] == "queued"
    job = stack.operator.get(f"/jobs/{sent[0].id}")
    assert (job["status"], job["resultSummary"], job["claimedBy"]) == (
        "succeeded", "done by hand", "old-1",
    )  # fmt: skip
    [file] = stack.operator.get(f"/jobs/{sent[0].id}/artifacts")["items"]
    assert (file["name"], file["contentType"]) == ("logs/run.log", "text/plain")
