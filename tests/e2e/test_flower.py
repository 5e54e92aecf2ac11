"""Flower as it comes, in a real browser: a remote worker is seen and steered as any Celery worker.

One stack and one browser for all of it; what the pages looked like lies in build/flower.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from celery import Celery

from tests import jobtypes
from tests.browser import Browser, browsing
from tests.processes import Process
from tests.services import free_port, until
from tests.stacks import Stack, start_up, wait_for_status

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
NODE = "worker-1@edge"
SLOTS = 3
WAIT_S = 60.0
TOAST = ".toast-body"


class Watched:
    """A stack with a remote worker, an orchestrator, and Flower in a browser."""

    def __init__(self, stack: Stack, app: Celery, browser: Browser, folder: Path) -> None:
        self.stack = stack
        self.app = app
        self.browser = browser
        self.folder = folder

    def send(self, task: str, **options: Any) -> Any:
        """Send a task by name, as an orchestrator does."""
        return self.app.send_task(task, queue="remote", **options)

    def row(self) -> list[str]:
        """Return the node's row among the workers: name, status, active, processed, failed, …."""
        rows = self.browser.rows("#workers-table tbody tr")
        return next((row for row in rows if row[0] == NODE), [])

    def task_says(self, task_id: str, *words: str) -> str:
        """Open a task's page until it says all these words."""

        def page() -> str:
            said = self.browser.go(f"/task/{task_id}")
            return said if all(word in said for word in words) else ""

        return until(page, WAIT_S, f"the page of the task says {words}")

    def slots(self) -> int:
        """Return how many jobs the node says it runs at once."""
        asked = self.app.control.inspect(timeout=WAIT_S, destination=[NODE], limit=1)
        return int((asked.stats() or {})[NODE]["pool"]["max-concurrency"])


@pytest.fixture
def watched(process: Callable[..., Process], tmp_path: Path) -> Iterator[Watched]:
    stack = start_up(process, tmp_path / "data", "--no-flower")
    port = free_port()
    environ = {"APP_BROKER": stack.told["brokerUrl"], "APP_BACKEND": stack.told["resultBackend"]}
    argv = [sys.executable, "-m", "celery", "-A", "tests.e2e.watched_app", "flower"]
    process(
        [*argv, "--address=127.0.0.1", f"--port={port}"],
        env=environ | {"FLOWER_UNAUTHENTICATED_API": "true"},
        cwd=ROOT,
    )
    worker(stack, process, tmp_path)
    home = f"http://127.0.0.1:{port}"
    with (
        stack.orchestrator() as app,
        browsing(home, pictures=ROOT / "build" / "flower") as browser,
    ):
        until(lambda: online(home), WAIT_S, "Flower lists the worker as online")
        yield Watched(stack, app, browser, tmp_path)
    assert stack.process.terminate(timeout=60) == 0


def worker(stack: Stack, process: Callable[..., Process], folder: Path) -> Process:
    """Start a remote worker, as the owner of its machine would."""
    token = folder / "token"
    made = stack.operator.post("/workers/tokens", {"workerId": "worker-1"})
    token.write_text(made.json()["token"])
    token.chmod(0o600)
    types = jobtypes.install(folder / "types")
    argv = [
        sys.executable, "-m", "remote_worker", "run", "--url", stack.told["edgeUrl"],
        "--token-file", str(token), "--worker-id", "worker-1", "--work-dir", str(folder / "work"),
        "--types", "child,echo,broken", "--concurrency", str(SLOTS), "--isolation", "none",
        "--lease-seconds", "15", "--log-format", "json",
    ]  # fmt: skip
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(types)}
    environ |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return process(argv, env=environ, cwd=ROOT)


def online(home: str) -> bool:
    try:
        rows = requests.get(f"{home}/workers?json=1", timeout=10).json()["data"]
    except requests.RequestException:
        return False
    return any(row["hostname"] == NODE and row["status"] for row in rows)


def test_flower_shows_and_steers_a_remote_worker_as_any_other(watched: Watched):
    done = watched.send("echo", kwargs={"n": 1})
    failed = watched.send("broken")
    done.get(timeout=WAIT_S)
    running = watched.send("child", kwargs={"gate": str(watched.folder / "never")})
    held = watched.send("echo", countdown=3600)
    pid_file = until(
        lambda: next((watched.folder / "work").rglob("pid"), None), WAIT_S, "the child runs"
    )
    pid = int(until(pid_file.read_text, WAIT_S, "its number"))

    the_workers_page_counts(watched)
    the_workers_own_page_has_all_its_tabs(watched, running.id)
    the_tasks_are_listed(watched, done.id, failed.id, running.id)
    a_running_task_is_terminated(watched, running, pid)
    a_task_that_waits_is_revoked(watched, held)
    the_pool_is_grown_and_shrunk(watched)
    limits_are_refused_in_words(watched)
    a_queue_is_paused_and_resumed(watched)
    shutdown_drains(watched)
    assert watched.browser.complaints() == []


def the_workers_page_counts(watched: Watched) -> None:
    watched.browser.go("/workers")
    row = until(
        lambda: (row := watched.row()) and row[2] == "1" and row,
        WAIT_S,
        lambda: f"one task is active, not {watched.browser.rows('#workers-table tbody tr')}",
    )
    # received is what the bridge has: a task waits with it until a worker has a slot
    assert row[:6] == [NODE, "Online", "1", "0", "1", "1"]
    assert row[6] != "000", row
    watched.browser.picture("workers")


def the_workers_own_page_has_all_its_tabs(watched: Watched, running: str) -> None:
    browser = watched.browser
    said = browser.go(f"/worker/{NODE}")
    assert NODE in said
    tabs = {
        "pool": ["Max concurrency", str(SLOTS), "drawbridge"],
        "broker": ["Transport", "https"],
        "queues": ["remote", "Cancel"],
        "tasks": [running, "child"],
        "limits": ["child", "echo"],
        "config": ["concurrency"],
        "system": ["System usage statistics"],
        "other": ["uptime"],
    }
    for tab, words in tabs.items():
        browser.press(f"worker-tab-{tab}")
        said = until(lambda tab=tab: browser.words(f"#tab-{tab}.show"), WAIT_S, f"the tab {tab}")
        browser.picture(f"worker-{tab}")
        assert [word for word in words if word.lower() not in said.lower()] == [], (tab, said)


def the_tasks_are_listed(watched: Watched, done: str, failed: str, running: str) -> None:
    browser = watched.browser
    browser.go("/tasks")

    def states() -> dict[str, str]:
        rows = browser.rows("#tasks-table tbody tr")
        tasks = (done, failed, running)
        return {task: row[2] for row in rows for task in tasks if len(row) > 1 and task in row[1]}

    wanted = {done: "SUCCESS", failed: "FAILURE", running: "STARTED"}
    until(lambda: states() == wanted, WAIT_S, lambda: f"the tasks are listed, not {states()}")
    browser.picture("tasks")
    watched.task_says(done, "SUCCESS", "echo", NODE, "Runtime")
    browser.picture("task-succeeded")
    watched.task_says(failed, "FAILURE", "broken", "Exception")
    browser.picture("task-failed")


def a_running_task_is_terminated(watched: Watched, running: Any, pid: int) -> None:
    browser = watched.browser
    watched.task_says(running.id, "STARTED", NODE)
    browser.picture("task-running")
    browser.press("task-terminate")
    assert "evoked" in browser.told(TOAST)
    until(lambda: not psutil.pid_exists(pid), WAIT_S, "the program is gone")
    until(lambda: running.state == "REVOKED", WAIT_S, "Celery knows")
    wait_for_status(watched.stack.operator, running.id, "cancelled")
    watched.task_says(running.id, "REVOKED", NODE)
    browser.picture("task-terminated")


def a_task_that_waits_is_revoked(watched: Watched, held: Any) -> None:
    watched.task_says(held.id, "RECEIVED")
    watched.browser.press("task-revoke")
    assert "evoked" in watched.browser.told(TOAST)
    until(lambda: held.state == "REVOKED", WAIT_S, "Celery knows")
    wait_for_status(watched.stack.operator, held.id, "cancelled")
    watched.task_says(held.id, "REVOKED")


def the_pool_is_grown_and_shrunk(watched: Watched) -> None:
    browser = watched.browser
    browser.go(f"/worker/{NODE}")
    browser.press("worker-pool-shrink")
    assert "Shrinking" in browser.told(TOAST, picture="worker-shrunk")
    until(lambda: watched.slots() == SLOTS - 1, WAIT_S, "one slot less")
    browser.press("worker-pool-grow")
    assert "Growing" in browser.told(TOAST)
    until(lambda: watched.slots() == SLOTS, WAIT_S, "all its slots")


def limits_are_refused_in_words(watched: Watched) -> None:
    browser = watched.browser
    browser.go(f"/worker/{NODE}")
    browser.press("worker-tab-limits")
    browser.fill("#tab-limits input[aria-label='Rate limit for child']", "5")
    browser.press("task-rate-limit-child")
    assert "no rate limit" in browser.told(TOAST, picture="worker-rate-limit")
    # Flower's page shows no refusal of a time limit, whoever refuses; its API does
    said = {"workername": NODE, "hard": "5"}
    answer = requests.post(f"{browser.home}/api/task/timeout/child", data=said, timeout=WAIT_S)
    assert answer.status_code == 403
    assert "the time limit is set on the remote worker's own machine" in answer.text


def a_queue_is_paused_and_resumed(watched: Watched) -> None:
    browser = watched.browser
    browser.press("worker-tab-queues")
    browser.press("worker-cancel-consumer-remote")
    said = browser.told(TOAST, picture="worker-paused")
    assert "no longer consuming from remote" in said
    browser.fill("#add-consumer-name", "remote")
    browser.press("worker-add-consumer")
    assert "add consumer remote" in browser.told(TOAST)
    watched.send("echo").get(timeout=WAIT_S)


def shutdown_drains(watched: Watched) -> None:
    browser = watched.browser
    browser.press("worker-group")
    browser.press("worker-shutdown")
    assert "Shutting down" in browser.told(TOAST, picture="worker-shut-down")
    asked = watched.app.control.inspect(timeout=WAIT_S, destination=[NODE], limit=1)
    until(lambda: asked.active_queues()[NODE] == [], WAIT_S, "it claims from nowhere")
