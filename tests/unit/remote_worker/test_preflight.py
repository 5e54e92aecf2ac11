"""The gates: each closes for its reason, names the way out, and claims nothing."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from remote_worker import isolation
from remote_worker.gates import Gate, Passed
from remote_worker.preflight import GIT_MIN, check
from remote_worker.settings import Settings
from remote_worker.wire import Identity, Wire
from tests.unit.remote_worker.edge import WORKER, Answer, FakeEdge, Shown, error_page, refusal


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    return path


@pytest.fixture
def program(bin_dir: Path) -> Callable[[str, str], Path]:
    def write(name: str, script: str) -> Path:
        path = bin_dir / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def settings(
    make_settings: Callable[..., Settings],
    program: Callable[[str, str], Path],
    bin_dir: Path,
    tmp_path: Path,
) -> Settings:
    program(
        "codex",
        f'case "$*" in --version) echo codex-cli 1.0;; "login status")'
        f' env > {tmp_path}/seen; echo "Logged in using test" >&2;; *) exit 9;; esac',
    )
    return make_settings(path=f"{bin_dir}:{os.environ['PATH']}")


def gate(passed: Passed, name: str) -> Gate:
    return next(gate for gate in passed.gates if gate.name == name)


def claimed(edge: FakeEdge) -> bool:
    return bool(edge.asked("/claim"))


def test_all_gates_open(settings: Settings, wire: Wire, edge: FakeEdge) -> None:
    passed = check(settings, wire)
    assert passed.ok, passed.gates
    assert [g.name for g in passed.gates] == [
        "work directory", "git", "codex", "codex login", "codex sandbox", "isolation", "limits",
        "edge", "token",
    ]  # fmt: skip
    assert not any(g.way_out for g in passed.gates if not g.warning)
    assert gate(passed, "codex login").detail.startswith("Logged in using test")
    assert passed.welcome is not None
    assert passed.welcome.features == {"release"}
    [hello] = edge.asked("/hello")
    assert hello.body == {
        "workerId": WORKER,
        "instanceId": "instance-1",
        "version": "1.2.3",
        "types": [],
        "capabilities": ["codex", "git"],
        "concurrency": 1,
        "pid": os.getpid(),
        "system": platform.system(),
    }
    assert not claimed(edge)


def test_codex_is_asked_as_the_jobs_will_ask_it(
    settings: Settings, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAWBRIDGE_TOKEN_FILE", "secret")
    check(settings, wire)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["CODEX_HOME"] == str(settings.codex_home)
    assert seen["HOME"].startswith(str(settings.work_dir))
    assert not any(name.startswith("DRAWBRIDGE") for name in seen)
    assert list(settings.work_dir.iterdir()) == []


@pytest.mark.parametrize(
    "name,script,closed,detail,way_out",
    [
        ("git", "echo git version 2.34.1", "git", "2.34.1", "2.38 or newer"),
        ("git", "echo something else", "git", "something else", "2.38 or newer"),
        ("git", "exit 1", "git", "ended with 1", "mend"),
        ("codex", "exit 1", "codex", "ended with 1", "mend"),
        (
            "codex",
            '[ "$1" = --version ] || { echo Not logged in; exit 1; }',
            "codex login",
            "Not logged in",
            "codex login",
        ),
    ],
)
def test_a_program_that_will_not_do(
    settings: Settings,
    wire: Wire,
    edge: FakeEdge,
    program: Callable[[str, str], Path],
    name: str,
    script: str,
    closed: str,
    detail: str,
    way_out: str,
) -> None:
    program(name, script)
    passed = check(settings, wire)
    assert not passed.ok
    assert [g.name for g in passed.gates if not g.ok] == [closed]
    assert detail in gate(passed, closed).detail
    assert way_out in gate(passed, closed).way_out
    assert not claimed(edge)


def test_the_oldest_git_that_will_do(
    settings: Settings, wire: Wire, program: Callable[[str, str], Path]
) -> None:
    program("git", f"echo git version {GIT_MIN[0]}.{GIT_MIN[1]}.1")
    assert check(settings, wire).ok


@pytest.mark.parametrize("name,closed", [("git", "git"), ("codex", "codex")])
def test_a_program_that_is_not_there(
    make_settings: Callable[..., Settings], wire: Wire, bin_dir: Path, name: str, closed: str
) -> None:
    (bin_dir / name).unlink(missing_ok=True)
    passed = check(make_settings(path=str(bin_dir)), wire)
    assert not passed.ok
    assert "not there" in gate(passed, closed).detail
    assert f"--{name}" in gate(passed, closed).way_out
    assert "codex login" not in [g.name for g in passed.gates]


@pytest.mark.parametrize("kind, ok", [("none", True), ("auto", False)])
def test_a_login_that_jobs_could_not_see_is_none(
    settings: Settings, wire: Wire, monkeypatch: pytest.MonkeyPatch, kind: str, ok: bool
) -> None:
    monkeypatch.setattr(isolation, "_hides", lambda *_: True)
    isolation._found.cache_clear()
    home = settings.work_dir / "codex"
    home.mkdir(parents=True)
    try:
        found = gate(check(replace(settings, codex_home=home, isolation=kind), wire), "codex login")
    finally:
        isolation._found.cache_clear()
    assert found.ok is ok
    if not ok:
        assert f"--work-dir {settings.work_dir / 'work'}" in found.way_out


def test_codex_is_not_asked_for_where_no_job_needs_it(
    make_settings: Callable[..., Settings], wire: Wire
) -> None:
    passed = check(make_settings(types=("echo",), codex="no-such-codex"), wire)
    assert passed.ok, passed.gates


def test_a_work_directory_that_cannot_be(
    settings: Settings, make_settings: Callable[..., Settings], wire: Wire, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    passed = check(make_settings(path=settings.path, work_dir=tmp_path / "file" / "x"), wire)
    assert [g.name for g in passed.gates if not g.ok] == ["work directory"]
    assert "--work-dir" in gate(passed, "work directory").way_out


@pytest.mark.parametrize(
    "path,answer,closed,way_out",
    [
        ("/healthz", error_page(502), "edge", "--url"),
        ("/healthz", error_page(200), "edge", "--url"),
        ("/readyz", refusal(503, "unavailable"), "edge", "operator"),
        ("/hello", refusal(401, "worker_auth_failed"), "token", "tokens create"),
        ("/hello", refusal(403, "worker_not_authorized"), "token", "--worker-id"),
        ("/hello", error_page(502), "token", "try again"),
        ("/hello", Answer(cut=True), "token", "try again"),
    ],
)
def test_an_edge_that_will_not_do(
    settings: Settings,
    wire: Wire,
    edge: FakeEdge,
    path: str,
    answer: Answer,
    closed: str,
    way_out: str,
) -> None:
    edge.instead(path, answer)
    passed = check(settings, wire)
    assert not passed.ok
    assert [g.name for g in passed.gates if not g.ok] == [closed]
    assert way_out in gate(passed, closed).way_out
    assert not claimed(edge)


def test_nobody_there(settings: Settings) -> None:
    who = Identity(worker_id=WORKER, instance_id="i", version="1")
    passed = check(settings, Wire("http://127.0.0.1:1", token=Shown(), identity=who))
    assert [g.name for g in passed.gates if not g.ok] == ["edge"]
    assert passed.welcome is None


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    "answer,ok",
    [
        (refusal(404, "job_not_found"), True),
        (refusal(401, "worker_auth_failed"), False),
        (refusal(403, "worker_not_authorized"), False),
        (refusal(404, "not_found"), False),
        (error_page(404), False),
    ],
)
def test_an_edge_without_hello_shows_by_a_strangers_heartbeat_whether_it_takes_the_token(
    settings: Settings, wire: Wire, edge: FakeEdge, status: int, answer: Answer, ok: bool
) -> None:
    edge.instead("/hello", refusal(status, "not_found"))
    edge.instead("/heartbeat", answer)
    passed = check(settings, wire)
    assert passed.ok is ok
    assert gate(passed, "token").ok is ok
    assert not claimed(edge)


def test_hello_is_read_with_tolerance(settings: Settings, wire: Wire, edge: FakeEdge) -> None:
    body = {"workerId": WORKER, "waitSeconds": 10, "heartbeatSeconds": "x", "features": "no"}
    edge.instead("/hello", Answer(body=json.dumps(body).encode()))
    passed = check(settings, wire)
    assert passed.welcome is not None
    assert (passed.welcome.wait_s, passed.welcome.heartbeat_s) == (10, None)
    assert passed.welcome.features == frozenset()


def sandbox(settings: Settings, wire: Wire, program: Callable[[str, str], Path], how: str) -> Gate:
    program(
        "codex",
        'case "$*" in --version) echo codex-cli 1.0;; "login status") echo "Logged in";;'
        f" {how} *) exit 9;; esac",
    )
    passed = check(settings, wire)
    # Never a closed gate: jobs that only read go well without a sandbox.
    assert passed.ok, passed.gates
    return gate(passed, "codex sandbox")


USAGE = '"sandbox --help") echo "Usage: codex sandbox [OPTIONS] [COMMAND]...";;'


def test_a_sandbox_that_works(
    settings: Settings, wire: Wire, program: Callable[[str, str], Path]
) -> None:
    found = sandbox(settings, wire, program, USAGE + ' "sandbox -- true") exit 0;;')
    assert (found.warning, found.detail) == (False, "workspace-write: works")


def test_a_sandbox_that_does_not_work_is_a_warning(
    settings: Settings, wire: Wire, program: Callable[[str, str], Path]
) -> None:
    how = USAGE + ' "sandbox -- true") echo "WARNING: x" >&2; echo "bwrap: No permissions" >&2;'
    found = sandbox(settings, wire, program, how + " exit 1;;")
    assert (found.warning, found.detail) == (True, "workspace-write: bwrap: No permissions")
    assert "--codex-sandbox danger-full-access" in found.way_out


@pytest.mark.parametrize(
    "how",
    [
        '"sandbox --help") echo "Usage: codex [OPTIONS] [PROMPT]";;',
        USAGE + ' "sandbox -- true") echo "error: unrecognized" >&2; exit 2;;',
        '"sandbox --help") exit 1;;',
    ],
)
def test_another_codex_leaves_it_unknown(
    settings: Settings, wire: Wire, program: Callable[[str, str], Path], how: str
) -> None:
    found = sandbox(settings, wire, program, how)
    assert not found.warning
    assert "unknown whether it works" in found.detail


def test_a_sandbox_the_owner_switched_off_is_not_tried(
    make_settings: Callable[..., Settings], settings: Settings, wire: Wire
) -> None:
    off = make_settings(path=settings.path, codex_sandbox="danger-full-access")
    assert gate(check(off, wire), "codex sandbox").detail.startswith("off")


@pytest.mark.parametrize("uid,warned", [(0, True), (1000, False)])
def test_jobs_that_would_be_root_are_a_warning(
    settings: Settings, wire: Wire, monkeypatch: pytest.MonkeyPatch, uid: int, warned: bool
) -> None:
    monkeypatch.setattr("remote_worker.isolation.os.getuid", lambda: uid)
    passed = check(settings, wire)
    assert gate(passed, "isolation").warning is warned
    assert ("isolation" in [g.name for g in passed.warnings]) is warned
    assert passed.ok


def test_a_git_token_is_seen_before_the_first_job(
    make_settings: Callable[..., Settings], settings: Settings, wire: Wire, tmp_path: Path
) -> None:
    path = tmp_path / "git-token"
    given = make_settings(path=settings.path, git_token_file=path)
    assert not gate(check(given, wire), "git credential").ok
    path.write_text("t0ken\n")
    path.chmod(0o644)
    assert "chmod 600" in gate(check(given, wire), "git credential").detail
    path.chmod(0o600)
    assert gate(check(given, wire), "git credential").detail.startswith("for github.com")
    no_gh = make_settings(path=settings.path, use_gh=True, gh="no-such-gh")
    assert "gh auth login" in gate(check(no_gh, wire), "git credential").detail
