"""The command line: one meaning for flag and environment, and exit codes that mean something."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner, Result
from rich.console import Console

from remote_worker import daemon
from remote_worker.board import JobLine, Snapshot
from remote_worker.cli import _connect, main
from remote_worker.health import Health
from remote_worker.settings import Settings
from remote_worker.terminal import drawn
from tests.processes import until
from tests.unit.remote_worker.edge import WORKER, FakeEdge, refusal

Invoke = Callable[..., Result]


@pytest.fixture
def arguments(edge: FakeEdge, token_file: Path, tmp_path: Path) -> list[str]:
    return [
        "--url", edge.url, "--token-file", str(token_file), "--worker-id", WORKER,
        "--work-dir", str(tmp_path / "work"), "--types", "echo",
    ]  # fmt: skip


@pytest.fixture
def invoke(
    arguments: list[str], job_types: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Invoke:
    monkeypatch.syspath_prepend(str(job_types))
    # nobody's own configuration
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(command: str, *more: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, [command, *arguments, *more], env=env)

    return call


def test_check_prints_a_table(invoke: Invoke, edge: FakeEdge) -> None:
    result = invoke("check")
    assert result.exit_code == 0, result.output
    assert f"accepted for worker {WORKER}" in result.stdout
    assert not edge.asked("/claim")


def test_check_in_json(invoke: Invoke) -> None:
    result = invoke("check", "--json")
    said = json.loads(result.stdout)
    assert said["ok"] is True
    assert all(set(gate) == {"name", "ok", "warning", "detail", "wayOut"} for gate in said["gates"])


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_closed_gate_is_exit_code_3_and_claims_nothing(
    invoke: Invoke, edge: FakeEdge, command: str
) -> None:
    edge.instead("/hello", refusal(401, "worker_auth_failed"))
    result = invoke(command, "--git", "no-such-git")
    assert result.exit_code == daemon.EXIT_PREFLIGHT
    assert "no-such-git is not there" in result.output
    assert "→ install git" in result.output
    assert "worker_auth_failed" in result.output
    assert not edge.asked("/claim")


@pytest.mark.parametrize(
    "more,said",
    [
        (("--url", "http://edge.example"), "use https"),
        (("--worker-id", "a b"), "--worker-id"),
        (("--model", "-x y"), "--model"),
        (("--effort", "HIGH"), "--effort"),
        (("--token-file", "/no/such/file"), "tokens create"),
        (("--git-host", "https://git.test"), "--git-host"),
        (("--git-author", "nobody"), "--git-author"),
        (("--forge-api", "http://forge.example"), "--forge-api"),
        (("--codex-sandbox", "none"), "workspace-write"),
        (("--lease-seconds", "0"), "--lease-seconds"),
        (("--wait-seconds", "51"), "--wait-seconds"),
    ],
)
def test_what_cannot_work_is_exit_code_2(
    invoke: Invoke, edge: FakeEdge, more: tuple[str, ...], said: str
) -> None:
    result = invoke("check", *more)
    assert result.exit_code == 2
    assert said in result.output
    assert edge.calls == []


def test_every_option_has_its_twin_in_the_environment() -> None:
    for command in main.commands.values():
        for parameter in command.params:
            twin = f"DRAWBRIDGE_{(parameter.opts[0].removeprefix('--').replace('-', '_')).upper()}"
            assert parameter.envvar == twin or parameter.name in ("once", "as_json")


def test_the_environment_is_read(
    invoke: Invoke, edge: FakeEdge, token_file: Path, tmp_path: Path
) -> None:
    environment = {
        "DRAWBRIDGE_URL": edge.url,
        "DRAWBRIDGE_TOKEN_FILE": str(token_file),
        "DRAWBRIDGE_WORKER_ID": WORKER,
        "DRAWBRIDGE_WORK_DIR": str(tmp_path / "work"),
        "DRAWBRIDGE_TYPES": "echo,child",
        "DRAWBRIDGE_CAPABILITIES": "gpu cuda",
        "DRAWBRIDGE_CONCURRENCY": "3",
    }
    result = CliRunner().invoke(main, ["check"], env=environment)
    assert result.exit_code == 0, result.output
    [hello] = edge.asked("/hello")
    assert hello.body["types"] == ["echo", "child"]
    assert hello.body["capabilities"] == ["gpu", "cuda"]
    assert hello.body["concurrency"] == 3


def test_a_setting_of_somebody_else_is_refused(invoke: Invoke) -> None:
    result = invoke("check", env={"DRAWBRIDGE_DATABASE_URL": "postgresql://x"})
    assert result.exit_code == 2
    assert "DRAWBRIDGE_DATABASE_URL" in result.output
    assert "postgresql" not in result.output


def test_a_second_daemon_in_one_work_directory_is_refused(
    invoke: Invoke, tmp_path: Path, edge: FakeEdge
) -> None:
    from remote_worker.spool import Spool  # noqa: PLC0415

    (tmp_path / "work").mkdir()
    spool = Spool(tmp_path / "work")
    spool.open()
    result = invoke("run")
    assert result.exit_code == daemon.EXIT_PREFLIGHT
    assert "--work-dir" in result.output
    assert not edge.asked("/claim")
    spool.close()


@pytest.fixture
def start(
    arguments: list[str], tmp_path: Path, job_types: Path
) -> Callable[..., "subprocess.Popen[bytes]"]:
    def call(*more: str) -> "subprocess.Popen[bytes]":
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(job_types),
        }  # fmt: skip
        argv = [sys.executable, "-m", "remote_worker", "run", *arguments, *more]
        root = Path(__file__).parents[3]
        return subprocess.Popen(argv, env=environment, cwd=root, stderr=subprocess.PIPE)

    return call


def test_once_reports_an_unsupported_job_and_ends(
    start: Callable[..., "subprocess.Popen[bytes]"], edge: FakeEdge
) -> None:
    # the edge gives what was not asked for
    held = edge.offer("nonsense")
    with start("--once", "--log-format", "json") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == daemon.EXIT_OK
    assert held.report["errorType"] == "unsupported_job_type"
    records = [json.loads(line) for line in err.splitlines()]
    # Whoever starts a worker waits for this line.
    actions = [r["action"] for r in records]
    assert set(actions[: actions.index("ready")]) <= {"gate"}
    assert any(r.get("job_id") == held.job["id"] and r["action"] == "fail" for r in records)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon(
    start: Callable[..., "subprocess.Popen[bytes]"], edge: FakeEdge, number: int
) -> None:
    with start() as process:
        until(lambda: edge.asked("/claim"), 20.0)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == daemon.EXIT_OK


def test_the_git_token_is_given_by_flag_or_environment(invoke: Invoke, tmp_path: Path) -> None:
    token = tmp_path / "git-token"
    token.write_text("a-git-token\n")
    token.chmod(0o600)
    said = "for git.test (private clones, publishing)"
    by_flag = invoke("check", "--git-token-file", str(token), "--git-host", "git.test")
    assert said in by_flag.stdout
    names = {"DRAWBRIDGE_GIT_TOKEN_FILE": str(token), "DRAWBRIDGE_GIT_HOST": "git.test"}
    by_name = invoke("check", env=names)
    assert said in by_name.stdout
    assert "a-git-token" not in by_flag.output + by_name.output
    assert "git credential" not in invoke("check").stdout


def test_the_git_token_gets_into_no_log(make_settings: Callable[..., Settings], tmp_path: Path):
    token = tmp_path / "git-token"
    token.write_text("a-git-token\n")
    token.chmod(0o600)
    _, make_redactor = _connect(make_settings(git_token_file=token))
    assert make_redactor().text("x a-git-token y") == "x [redacted] y"
    token.unlink()
    assert make_redactor().text("fine") == "fine"


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    "status,code", [(401, "worker_auth_failed"), (403, "worker_not_authorized")]
)
def test_an_edge_that_does_not_want_this_worker_is_exit_code_4(
    invoke: Invoke, edge: FakeEdge, command: str, status: int, code: str
) -> None:
    edge.instead("/hello", refusal(status, code))
    result = invoke(command)
    assert result.exit_code == daemon.EXIT_REFUSED, result.output
    assert code in result.output
    assert not edge.asked("/claim")


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_type_that_nobody_here_can_run_is_refused(
    invoke: Invoke, edge: FakeEdge, command: str
) -> None:
    result = invoke(command, "--types", "echo,nonsense")
    assert result.exit_code == 2
    assert "nonsense" in result.output
    assert "codex_exec" in result.output
    assert edge.calls == []


@pytest.mark.parametrize("command", ["check", "run"])
def test_the_type_command_without_a_program_is_refused(
    invoke: Invoke, edge: FakeEdge, command: str
) -> None:
    result = invoke(command, "--types", "command")
    assert result.exit_code == 2
    assert "--allow-program" in result.output
    assert edge.calls == []
    assert invoke("check", "--types", "command", "--allow-program", "make").exit_code == 0


def test_flag_before_environment_before_file_before_default(
    invoke: Invoke, edge: FakeEdge, tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('concurrency = 5\ncapabilities = ["gpu", "auto"]\nlabel = ["site=here"]\n')
    environment = {"DRAWBRIDGE_CONCURRENCY": "4"}

    def hello(*more: str) -> dict[str, object]:
        result = invoke("check", "--config", str(file), *more, env=environment)
        assert result.exit_code == 0, result.output
        return edge.asked("/hello")[-1].body

    assert hello("--concurrency", "3")["concurrency"] == 3
    assert hello()["concurrency"] == 4
    environment.clear()
    said = hello()
    assert said["concurrency"] == 5
    capabilities = said["capabilities"]
    assert isinstance(capabilities, list)
    assert capabilities[0] == "gpu"
    assert {"git", "site=here"} <= set(capabilities)
    assert "auto" not in capabilities


@pytest.mark.parametrize(
    "text,said",
    [("tokn-file = 1", "tokn_file"), ("url = ", "configuration"), ("config = 'x'", "config")],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    invoke: Invoke, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(text)
    result = invoke("check", "--config", str(file))
    assert result.exit_code == 2
    assert said in result.output
    assert invoke("check", "--config", str(tmp_path / "none")).exit_code == 2


def test_health_and_figures_tell_of_a_deaf_edge_and_refused_heartbeats(
    make_settings: Callable[..., Settings], edge: FakeEdge, tmp_path: Path
) -> None:
    board = Seen()
    with Health(board, host="127.0.0.1", port=0) as health:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{health.port}"
        well = requests.get(f"{url}/healthz", timeout=10)
        assert (well.status_code, well.json()["status"]) == (200, "ok")
        board.troubles = ("the edge refuses the heartbeats of job j",)
        ill = requests.get(f"{url}/healthz", timeout=10)
        assert (ill.status_code, ill.json()["troubles"]) == (503, list(board.troubles))
        figures = requests.get(f"{url}/metrics", timeout=10).text
        assert requests.get(f"{url}/other", timeout=10).status_code == 404
    assert "drawbridge_worker_healthy 0.0" in figures
    assert 'drawbridge_worker_jobs_ended_total{ending="complete"} 2.0' in figures
    picture = Console(width=120)
    with picture.capture() as capture:
        picture.print(drawn(board.look()))
    assert "1 of 2 slots · 2 complete" in capture.get()
    assert "cloning" in capture.get()
    assert "! the edge refuses" in capture.get()


class Seen:
    """A board with a picture of its own."""

    troubles: tuple[str, ...] = ()

    def look(self) -> Snapshot:
        line = JobLine(
            id="j", type="echo", running_s=3.0, said="cloning\x1b[2J", beat_s=1.0, refused=False
        )
        return Snapshot(
            state="running", slots=2, jobs=(line,), endings={"complete": 2}, claims=5, heard_s=1.0,
            deaf_s=0.0, troubles=self.troubles,
        )  # fmt: skip
