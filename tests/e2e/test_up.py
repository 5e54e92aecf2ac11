"""`drawbridge up`: one line of JSON, a stack that works, and nothing left when told to stop."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from celery import Celery

from broker.stack.programs import command
from tests.processes import Process, until
from tests.services import Valkey, free_port
from tests.stacks import Stack, start_up

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
READY_S = 90.0
STANDIN = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "standin_codex.py"
KEYS = {
    "edgeUrl",
    "flowerUrl",
    "brokerUrl",
    "resultBackend",
    "queue",
    "operatorToken",
    "reservationsUrl",
    "databaseUrl",
    "dataDir",
}
Up = Callable[..., tuple[Process, dict[str, Any]]]


@pytest.fixture
def up(process: Callable[..., Process], tmp_path: Path) -> Up:
    def start(*options: str, data: str = "data") -> tuple[Process, dict[str, Any]]:
        argv = [command("drawbridge"), "up", "--json", "--data-dir", str(tmp_path / data)]
        started = process([*argv, *options], stdout_apart=True)
        line = started.until(
            lambda: "\n" in started.stdout() and started.stdout(), READY_S, what="it is ready"
        )
        told: dict[str, Any] = json.loads(line)
        return started, told

    return start


@pytest.fixture(scope="module")
def stack(
    module_process: Callable[..., Process], tmp_path_factory: pytest.TempPathFactory
) -> Stack:
    """Give a stack with a worker to tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("up") / "data"
    return start_up(module_process, folder, "--no-flower", "--", "--codex", str(STANDIN), workers=1)


def edge(told: dict[str, Any], method: str, path: str, **more: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {told['operatorToken']}"}
    url = f"{told['edgeUrl']}/api/queue{path}"
    return requests.request(method, url, headers=headers, timeout=10, **more)


def gone(pids: dict[str, int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids.values())


def test_one_line_a_usable_stack_and_a_clean_end(up: Up, tmp_path: Path):
    started, told = up("--workers", "0", "--queue", "elsewhere")
    assert set(told) >= KEYS
    assert told["queue"] == "elsewhere"
    assert set(told["pids"]) == {"broker", "reservations", "flower", "bridge", "beat", "edge"}
    assert requests.get(f"{told['flowerUrl']}/healthcheck", timeout=10).status_code == 200

    # what plain Celery sends arrives as a job, and a cancel comes back as a result
    with Celery(broker=told["brokerUrl"], backend=told["resultBackend"]) as app:
        sent = app.send_task("codex_exec", kwargs={"repository": "o/n"}, queue="elsewhere")
        until(lambda: edge(told, "GET", f"/jobs/{sent.id}").ok, what="the bridge has brought it")
        assert (
            edge(told, "POST", f"/jobs/{sent.id}/cancel", json={}).json()["status"] == "cancelled"
        )
        until(lambda: sent.state == "REVOKED", what="the bridge has told Celery")
        sent.forget()
    made = edge(told, "POST", "/jobs", json={"type": "noop"}).json()
    assert made["queue"] == "elsewhere"

    assert started.terminate(timeout=60) == 0
    assert gone(told["pids"])
    assert started.stdout().count("\n") == 1
    logs = {path.name for path in (tmp_path / "data" / "logs").iterdir()}
    assert {"edge.log", "bridge.log", "beat.log", "broker.log"} <= logs


def test_each_process_holds_what_it_needs_and_no_more(stack: Stack):
    told = stack.told
    # what died in the test of another was restarted
    processes = {name: psutil.Process(stack.pid(name)) for name in told["pids"]}
    seen = {name: one.environ() for name, one in processes.items()}
    holds = {
        name: {
            what
            for what in ("brokerUrl", "resultBackend", "reservationsUrl", "databaseUrl")
            if any(told[what] in value for value in environment.values())
        }
        for name, environment in seen.items()
    }
    assert holds == {
        "broker": set(),
        "reservations": set(),
        "bridge": {"brokerUrl", "resultBackend", "reservationsUrl", "databaseUrl"},
        "beat": {"brokerUrl"},
        "edge": {"reservationsUrl", "databaseUrl"},
        "worker-1": set(),
    }
    arguments = [one.cmdline() for one in processes.values()]
    assert not any(told["operatorToken"] in word for line in arguments for word in line)


def test_what_dies_is_restarted_in_its_place(stack: Stack):
    dead = stack.pid("edge")
    stack.kill("edge")
    until(lambda: stack.pid("edge") != dead, what="another is in its place")
    until(lambda: answers(stack.told), what="and serves")


def test_a_second_stack_on_the_folder_is_refused_and_harms_nothing(
    stack: Stack, process: Callable[..., Process]
):
    told = stack.told
    second = process([command("drawbridge"), "up", "--data-dir", told["dataDir"]])
    assert second.wait(60) == 1
    assert "another stack" in second.output()
    assert "--data-dir" in second.output()
    assert answers(told)


def test_a_killed_stack_is_cleared_away_by_the_next_and_its_jobs_are_still_there(up: Up):
    started, before = up("--workers", "0", "--no-flower")
    made = edge(before, "POST", "/jobs", json={"type": "noop", "payload": {}}).json()
    started.kill()
    _, after = up("--workers", "0", "--no-flower")
    assert gone(before["pids"])
    assert after["operatorToken"] == before["operatorToken"]
    assert edge(after, "GET", f"/jobs/{made['id']}").json()["status"] == "queued"


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--broker-url", "redis://127.0.0.1:1/0", "is --broker-url right?"),
        ("--reservations-url", "redis://127.0.0.1:1/0", "is --reservations-url right?"),
        ("--database-url", "postgresql://127.0.0.1:1/x", "is --database-url right?"),
        ("--port", "taken", "name another with --port"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    process: Callable[..., Process], tmp_path: Path, option: str, value: str, words: str
):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        value = str(held.getsockname()[1]) if value == "taken" else value
        argv = [command("drawbridge"), "up", "--no-flower", "--data-dir", str(tmp_path / "data")]
        refused = process([*argv, "--workers", "0", option, value])
        assert refused.wait(60) == 1
    assert words in refused.output()
    assert "Traceback" not in refused.output()


def test_without_a_codex_the_stack_runs_without_a_worker(
    process: Callable[..., Process], tmp_path: Path
):
    path = os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not (Path(folder) / "codex").exists()
    )
    argv = [command("drawbridge"), "up", "--json", "--no-flower"]
    started = process(
        [*argv, "--data-dir", str(tmp_path / "data")],
        env={**os.environ, "PATH": path},
        stdout_apart=True,
    )
    line = started.until(started.stdout, READY_S, what="it is ready")
    assert json.loads(line)["workers"] == []
    assert "without a worker (no codex on PATH" in started.output()
    assert started.terminate(timeout=60) == 0


def test_a_worker_whose_preflight_fails_ends_the_start_with_its_own_words(
    process: Callable[..., Process], tmp_path: Path
):
    argv = [command("drawbridge"), "up", "--no-flower", "--data-dir", str(tmp_path / "data")]
    started = process([*argv, "--", "--codex", "/nowhere/codex"], stdout_apart=True)
    assert started.wait(READY_S) == 1
    assert started.stdout() == ""
    assert "worker-1 ended with exit code 3" in started.output()
    assert "/nowhere/codex" in started.output()
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert left == []


def answers(told: dict[str, Any]) -> bool:
    try:
        return requests.get(f"{told['edgeUrl']}/readyz", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.postgres
def test_real_services_take_the_place_of_the_embedded_ones(
    up: Up, start_valkey: Callable[..., Valkey], postgres_url: str
):
    broker, reservations = start_valkey(), start_valkey()
    started, told = up(
        *("--workers", "0", "--no-flower", "--port", str(free_port())),
        *("--broker-url", broker.url, "--result-backend", broker.url),
        *("--reservations-url", reservations.url, "--database-url", postgres_url),
    )
    assert set(told["pids"]) == {"bridge", "beat", "edge"}
    with Celery(broker=broker.url, backend=broker.url) as app:
        sent = app.send_task("noop", queue="remote", ignore_result=True)
        until(lambda: edge(told, "GET", f"/jobs/{sent.id}").ok, what="the bridge has brought it")
    assert started.terminate(timeout=60) == 0
    assert broker.answers()
