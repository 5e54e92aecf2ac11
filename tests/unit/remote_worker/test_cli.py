"""The command line: one meaning for flag and environment, and exit codes that mean something."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remote_worker import daemon
from remote_worker.cli import _connect, main
from remote_worker.settings import Settings
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
def invoke(arguments: list[str]) -> Invoke:
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


def test_the_environment_is_read(edge: FakeEdge, token_file: Path, tmp_path: Path) -> None:
    environment = {
        "DRAWBRIDGE_URL": edge.url,
        "DRAWBRIDGE_TOKEN_FILE": str(token_file),
        "DRAWBRIDGE_WORKER_ID": WORKER,
        "DRAWBRIDGE_WORK_DIR": str(tmp_path / "work"),
        "DRAWBRIDGE_TYPES": "echo,other",
        "DRAWBRIDGE_CAPABILITIES": "gpu cuda",
        "DRAWBRIDGE_CONCURRENCY": "3",
    }
    result = CliRunner().invoke(main, ["check"], env=environment)
    assert result.exit_code == 0, result.output
    [hello] = edge.asked("/hello")
    assert hello.body["types"] == ["echo", "other"]
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
def start(arguments: list[str], tmp_path: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    def call(*more: str) -> "subprocess.Popen[bytes]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        argv = [sys.executable, "-m", "remote_worker", "run", *arguments, *more]
        root = Path(__file__).parents[3]
        return subprocess.Popen(argv, env=environment, cwd=root, stderr=subprocess.PIPE)

    return call


def test_once_reports_an_unsupported_job_and_ends(
    start: Callable[..., "subprocess.Popen[bytes]"], edge: FakeEdge
) -> None:
    held = edge.offer("echo")
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
