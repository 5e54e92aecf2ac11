"""The command ``drawbridge``: what it says, where it says it, and how it exits."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from broker import cli
from broker.errors import AuthFailed
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.ledger.revisions import head
from broker.policy import Policy
from broker.reservations.store import Reservations
from broker.tokens import PATTERN
from remote_worker.cli import main as worker_main
from tests.services import free_port

Run = Callable[..., Result]

HEAVY = {"alembic", "celery", "flask", "kombu", "marshmallow", "psycopg", "redis", "sqlalchemy"}


@pytest.fixture
def run(database_url: str) -> Run:
    """Run the command in this process, on an empty ledger."""

    def run(*words: str, **env: str) -> Result:
        settings = {
            "DRAWBRIDGE_DATABASE_URL": database_url,
            # Nobody listens there: no command but revoke may care, and revoke must do without.
            "DRAWBRIDGE_RESERVATIONS_URL": f"redis://127.0.0.1:{free_port()}/0",
            **env,
        }
        result = CliRunner(env=settings).invoke(cli.drawbridge, words, prog_name="drawbridge")
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


@pytest.fixture
def migrated(run: Run) -> Run:
    assert run("migrate").exit_code == 0
    return run


@pytest.fixture
def credentials(database_url: str) -> Iterator[Credentials]:
    ledger = Ledger(database_url)
    yield Credentials(ledger)
    ledger.close()


def one_line(text: str) -> str:
    """Return the only line there is."""
    (line,) = text.splitlines()
    return line


def in_a_process(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("drawbridge")
    return subprocess.run(
        [str(program), *words], capture_output=True, text=True, check=False, timeout=60, env=env
    )


def test_help_names_every_command_in_one_line_each():
    done = in_a_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(
        r"^  ([a-z]+) +[A-Z].*\.$", done.stdout.partition("Commands:")[2], re.MULTILINE
    )
    assert listed == sorted(cli.PLACES)
    assert {"beat", "bridge", "edge", "migrate", "tokens", "up"} <= set(listed)
    assert in_a_process("-h").stdout == done.stdout


def _groups(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        yield path
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from _groups(command.get_command(context, name) or command, *path, name)


@pytest.mark.parametrize("root", [cli.drawbridge, worker_main], ids=["drawbridge", "worker"])
def test_no_list_of_commands_breaks_off(root: click.Group):
    for path in _groups(root):
        said = CliRunner().invoke(root, [*path, "-h"], terminal_width=80)
        assert said.exit_code == 0
        assert "..." not in said.output.partition("Commands:")[2], path


def test_beat_names_the_options_that_it_has(run: Run):
    result = run("beat")
    assert result.exit_code == 1
    assert "--broker-url" in one_line(result.stderr)
    assert "-A" not in result.stderr


def test_an_edge_that_cannot_serve_yet_says_why_and_waits(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edge_api.cli.log_to_stderr", lambda: None)
    monkeypatch.setattr("edge_api.cli.EdgeServer.run", lambda _: None)
    for missing in ("The ledger is not migrated", "The reservations do not answer"):
        caplog.clear()
        assert run("edge", "--port", "0").exit_code == 0
        assert any(f"503 until this is mended: {missing}" in one for one in caplog.messages)
        assert run("migrate").exit_code == 0


def test_help_imports_no_library_of_the_commands():
    script = f"""
import sys
from click.testing import CliRunner
from broker.cli import drawbridge
assert CliRunner().invoke(drawbridge, ["--help"]).exit_code == 0
print({HEAVY!r} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "set()\n"


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", in_a_process("--version").stdout)


@pytest.mark.parametrize("name", sorted(cli.PLACES))
def test_every_command_is_where_it_is_said_to_be(name: str):
    done = in_a_process(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: drawbridge {name}")


def test_a_command_whose_libraries_are_missing_says_how_to_get_them():
    script = """
import sys
sys.modules["sqlalchemy"] = None
from broker.cli import drawbridge
drawbridge(["migrate"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert "pip install 'celery-drawbridge[edge]'" in one_line(done.stderr)


def test_usage_errors_exit_2(run: Run):
    for words in (
        ["nonsense"],
        ["--nonsense"],
        ["migrate", "--nonsense"],
        ["tokens", "create"],
        ["tokens", "create", "--kind", "robot"],
        ["tokens", "create", "--kind", "worker"],
        ["tokens", "create", "--kind", "worker", "--max-concurrency", "0"],
        ["tokens", "create", "--kind", "operator", "--expires-in", "0d"],
        ["tokens", "create", "--kind", "operator", "--expires-in", "soon"],
        ["tokens", "list", "--limit", "0"],
        ["tokens", "revoke"],
    ):
        assert run(*words).exit_code == 2, words


def test_migrate_says_what_it_did(run: Run):
    checked = run("migrate", "--check")
    assert checked.exit_code == 1
    assert "drawbridge migrate" in one_line(checked.stdout)
    assert one_line(run("migrate").stdout) == f"The ledger is made, at revision {head()}."
    assert one_line(run("migrate").stdout) == f"The ledger is at revision {head()} already."
    checked = run("migrate", "--check")
    assert checked.exit_code == 0
    assert head() in one_line(checked.stdout)


def test_migrate_says_it_to_scripts(run: Run):
    def said(*words: str) -> dict[str, object]:
        return json.loads(one_line(run("migrate", "--json", *words).stdout))

    assert said("--check") == {"current": None, "head": head(), "atHead": False}
    assert said() == {"from": None, "to": head(), "changed": True}
    assert said() == {"from": head(), "to": head(), "changed": False}
    assert said("--check") == {"current": head(), "head": head(), "atHead": True}


def test_a_worker_token_of_the_command_line_lets_the_worker_in(
    migrated: Run, credentials: Credentials
):
    words = [
        "--kind",
        "worker",
        "--worker-id",
        "w-1",
        "--description",
        "box",
        "--max-concurrency",
        "2",
    ]
    words += ["--allow-repository", "Org/*", "--allow-repository", "https://gitlab.com/a/B.git"]
    words += [
        "--allow-type",
        "codex_exec",
        "--capability",
        "gpu",
        "--capability",
        "git",
        "--queue",
        "remote",
    ]
    result = migrated("tokens", "create", *words, "--expires-in", "12h", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    said = json.loads(one_line(result.stdout))
    now = datetime.now(UTC)
    proven = credentials.verify(said["token"], now=now)
    assert proven.worker_id == "w-1"
    assert proven.policy.repositories == ("github.com/org/*", "gitlab.com/a/B")
    assert proven.policy.types == ("codex_exec",)
    assert proven.policy.capabilities == ("gpu", "git")
    assert proven.policy.queues == ("remote",)
    assert proven.policy.max_concurrency == 2
    assert proven.expires_at is not None
    assert timedelta(hours=11, minutes=59) < proven.expires_at - now <= timedelta(hours=12)
    assert {key: said[key] for key in ("id", "kind", "workerId", "isActive", "description")} == {
        "id": proven.id,
        "kind": "worker",
        "workerId": "w-1",
        "isActive": True,
        "description": "box",
    }


def test_what_is_not_restricted_is_not_set(migrated: Run, credentials: Credentials):
    result = migrated("tokens", "create", "--kind", "worker", "--worker-id", "w")
    policy = credentials.verify(result.stdout.strip(), now=datetime.now(UTC)).policy
    assert policy.types is policy.repositories is policy.capabilities is policy.queues is None


def test_a_token_is_alone_on_stdout_so_that_a_shell_can_take_it(
    migrated: Run, credentials: Credentials
):
    result = migrated("tokens", "create", "--kind", "operator")
    assert re.fullmatch(PATTERN + "\n", result.stdout)
    proven = credentials.verify(result.stdout.strip(), now=datetime.now(UTC))
    assert proven.expires_at == proven.created_at + timedelta(days=90)
    assert proven.id in one_line(result.stderr)
    assert result.stdout.strip() not in result.stderr


def test_a_token_may_live_for_ever(migrated: Run, credentials: Credentials):
    result = migrated("tokens", "create", "--kind", "producer", "--expires-in", "never")
    assert credentials.verify(result.stdout.strip(), now=datetime.now(UTC)).expires_at is None


def test_a_token_file_is_for_its_owners_eyes_and_the_token_is_nowhere_else(
    migrated: Run, credentials: Credentials, tmp_path: Path
):
    file = tmp_path / "token"
    file.write_text("an older one")
    file.chmod(0o644)
    words = ["--kind", "worker", "--worker-id", "w", "--token-file", str(file)]
    refused = migrated("tokens", "create", *words)
    assert (refused.exit_code, file.read_text()) == (1, "an older one")
    assert "--force" in one_line(refused.stderr)
    assert credentials.list() == []
    for more in (["--force"], ["--force", "--json"]):
        result = migrated("tokens", "create", *words, *more)
        text = file.read_text(encoding="ascii").strip()
        assert credentials.verify(text, now=datetime.now(UTC)).worker_id == "w"
        assert text not in result.output
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("*token*")] == ["token"]


def test_no_token_is_made_that_cannot_be_handed_over(
    migrated: Run, credentials: Credentials, tmp_path: Path
):
    file = tmp_path / "no such folder" / "token"
    result = migrated("tokens", "create", "--kind", "operator", "--token-file", str(file))
    assert result.exit_code == 1
    assert "cannot be written" in one_line(result.stderr)
    assert credentials.list() == []


def test_a_token_file_is_left_alone_when_no_token_is_made(migrated: Run, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("an older one")
    words = ["--kind", "worker", "--worker-id", "a/b", "--token-file", str(file), "--force"]
    result = migrated("tokens", "create", *words)
    assert result.exit_code == 1
    assert "workerId" in one_line(result.stderr)
    assert file.read_text() == "an older one"
    assert [path.name for path in tmp_path.glob("*token*")] == ["token"]


def test_the_list_says_what_each_token_is(migrated: Run, credentials: Credentials):
    assert len(migrated("tokens", "list").stdout.splitlines()) == 1
    now = datetime.now(UTC)
    old = now - timedelta(days=2)
    credentials.create("operator", description="boss\x1b[31m\n", now=now)
    made, _ = credentials.create("worker", worker_id="gone", now=now)
    credentials.revoke(made.id, now=now)
    late = Policy(types=("a", "b"), repositories=(), max_concurrency=2)
    credentials.create(
        "worker", worker_id="late", policy=late, expires_at=old + timedelta(days=1), now=old
    )
    title, *rows = migrated("tokens", "list").stdout.splitlines()
    assert title.split()[:4] == ["ID", "KIND", "WORKER", "STATE"]
    assert {tuple(row.split()[1:4]) for row in rows} == {
        ("operator", "-", "active"),
        ("worker", "gone", "revoked"),
        ("worker", "late", "expired"),
    }
    assert "boss?[31m?" in "".join(rows)
    told = {row.split()[2]: row[title.index("ALLOWS") :].rstrip() for row in rows}
    assert told["late"] == "types=a,b repositories=none at once=2"
    assert told["gone"] == "all"
    items = json.loads(migrated("tokens", "list", "--kind", "worker", "--json").stdout)["items"]
    assert [(one["workerId"], one["isActive"]) for one in items] == [
        ("gone", False),
        ("late", False),
    ]
    assert not re.search(PATTERN, str(items))


def test_a_revoked_token_is_told_to_the_reservations_too(
    migrated: Run, credentials: Credentials, valkey_url: str
):
    made, text = credentials.create("worker", worker_id="w", now=datetime.now(UTC))
    result = migrated("tokens", "revoke", made.id, DRAWBRIDGE_RESERVATIONS_URL=valkey_url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert made.id in one_line(result.stdout)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=datetime.now(UTC))
    reservations = Reservations.connect(valkey_url)
    assert reservations.is_revoked(made.id)
    reservations.close()
    again = migrated("tokens", "revoke", made.id, "--json", DRAWBRIDGE_RESERVATIONS_URL=valkey_url)
    assert json.loads(again.stdout)["isActive"] is False


def test_a_token_is_revoked_without_the_reservations_too(migrated: Run, credentials: Credentials):
    made, text = credentials.create("worker", worker_id="w", now=datetime.now(UTC))
    result = migrated("tokens", "revoke", made.id)
    assert (result.exit_code, result.stderr) == (0, "")
    assert made.id in one_line(result.stdout)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=datetime.now(UTC))


def test_a_rotation_shows_a_new_token_and_keeps_the_old_one_for_a_while(
    migrated: Run, credentials: Credentials
):
    made, old = credentials.create("operator", now=datetime.now(UTC))
    result = migrated("tokens", "rotate", made.id, "--overlap", "1h")
    new = one_line(result.stdout)
    now = datetime.now(UTC)
    assert credentials.verify(new, now=now).id in one_line(result.stderr)
    assert credentials.verify(old, now=now).id == made.id
    with pytest.raises(AuthFailed):
        Credentials(credentials._ledger).verify(old, now=now + timedelta(hours=1))
    used = migrated("tokens", "rotate", made.id)
    assert (used.exit_code, used.stdout) == (1, "")
    assert "in use" in one_line(used.stderr)


def test_what_a_token_allows_is_replaced(migrated: Run, credentials: Credentials):
    made, _ = credentials.create("worker", worker_id="w", now=datetime.now(UTC))
    words = ["--allow-type", "echo", "--ip-range", "10.0.0.0/8", "--max-concurrency", "2"]
    said = json.loads(migrated("tokens", "allow", made.id, *words, "--json").stdout)
    assert (said["allowedJobTypes"], said["ipRanges"], said["maxConcurrency"]) == (
        ["echo"], ["10.0.0.0/8"], 2,
    )  # fmt: skip
    assert migrated("tokens", "allow", made.id, "--ip-range", "10.0.0.1/8").exit_code == 1
    operator, _ = credentials.create("operator", now=datetime.now(UTC))
    assert migrated("tokens", "allow", operator.id, "--allow-type", "x").exit_code == 1


def test_the_audit_tells_what_was_done_and_whether_it_was_touched(migrated: Run, database_url: str):
    token_id = json.loads(migrated("tokens", "create", "--kind", "operator", "--json").stdout)["id"]
    migrated("tokens", "revoke", token_id)
    listed = migrated("audit", "list").stdout.splitlines()
    assert [line.split()[2] for line in listed] == ["token.revoke", "token.create"]
    (one,) = json.loads(migrated("audit", "list", "--action", "token.revoke", "--json").stdout)[
        "items"
    ]
    assert (one["actor"], one["object"]) == ("cli", token_id)
    assert one["source"].startswith("uid ")
    good = json.loads(migrated("audit", "verify", "--json").stdout)
    assert (good["ok"], good["records"]) == (True, 2)
    assert migrated("audit", "verify", "--expect", good["head"]).exit_code == 0
    assert migrated("audit", "verify", "--expect", "nonsense").exit_code == 2
    ledger = Ledger(database_url)
    with ledger.write() as conn:
        conn.execute(sa.text("UPDATE audit SET actor = 'nobody' WHERE seq = 1"))
    ledger.close()
    result = migrated("audit", "verify")
    assert (result.exit_code, one_line(result.stdout)) == (1, "PROBLEM  record 1 was changed")


def test_revoking_what_is_not_there_is_refused(migrated: Run):
    result = migrated("tokens", "revoke", "000000000000")
    assert (result.exit_code, result.stdout) == (1, "")
    assert one_line(result.stderr).startswith("Error: ")


@pytest.mark.parametrize("words", ["tokens list", "tokens create --kind operator"])
def test_tokens_of_a_ledger_without_tables_point_to_migrate(run: Run, words: str):
    result = run(*words.split())
    assert result.exit_code == 1
    assert "drawbridge migrate" in one_line(result.stderr)


@pytest.mark.parametrize("words", ["migrate", "migrate --check", "tokens list"])
@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://root@localhost/x",
        "sqlite:///:memory:",
        "sqlite:////proc/no/ledger.sqlite3",
        "sqlite:////proc",
        "postgresql://user:hunter2@127.0.0.1:{port}/db",
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_with_the_way_out(url: str, words: str):
    result = CliRunner(env={"DRAWBRIDGE_DATABASE_URL": url.format(port=free_port())}).invoke(
        cli.drawbridge, words.split()
    )
    assert (result.exit_code, result.stdout) == (1, "")
    line = one_line(result.stderr)
    assert re.search(r"write sqlite:////path|cannot be made|correct DRAWBRIDGE_DATABASE_URL", line)
    assert "hunter2" not in line


def test_a_setting_that_does_not_exist_is_refused_with_the_near_match(run: Run):
    result = run("tokens", "list", DRAWBRIDGE_DATABASE_ULR="secret")
    assert result.exit_code == 1
    assert one_line(result.stderr) == (
        "Error: There is no setting DRAWBRIDGE_DATABASE_ULR; did you mean DRAWBRIDGE_DATABASE_URL?"
    )


def test_the_program_itself_exits_as_its_commands_do(tmp_path: Path):
    env = {"DRAWBRIDGE_DATA_DIR": str(tmp_path)}
    assert in_a_process("tokens", "list", **env).returncode == 1
    assert in_a_process("migrate", **env).returncode == 0
    assert in_a_process("tokens", "list", **env).returncode == 0
    assert in_a_process("tokens", "nonsense", **env).returncode == 2
    assert (tmp_path / "ledger.sqlite3").stat().st_size > 0
