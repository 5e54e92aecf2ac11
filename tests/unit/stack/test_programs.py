"""What each process is told: its own addresses and nobody else's."""

from pathlib import Path

import pytest

from broker.stack import servers
from broker.stack.folder import Folder
from broker.stack.processes import Program
from broker.stack.programs import Addresses, Programs

ADDRESSES = Addresses(
    broker_url="redis://broker",
    result_backend="redis://results",
    database_url="postgresql://ledger",
    reservations_url="redis://reservations",
    edge_port=8080,
    flower_port=5555,
)
ENVIRON = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "CODEX_HOME": "/home/me/.codex",
    "DRAWBRIDGE_BROKER_URL": "redis://mine",
    "AWS_SECRET_ACCESS_KEY": "mine",
}


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(folder=Folder(tmp_path), addresses=ADDRESSES, queue="remote", environ=ENVIRON)


def told(program: Program) -> set[str]:
    """Return which of the four addresses it holds, in its environment or its command line."""
    words = [*program.argv, *program.environment.values()]
    secret = {
        name: getattr(ADDRESSES, name)
        for name in ("broker_url", "result_backend", "database_url", "reservations_url")
    }
    return {name for name, value in secret.items() if any(value in word for word in words)}


def ready() -> bool:
    return True


def test_each_role_holds_its_own_addresses_alone(programs: Programs, tmp_path: Path):
    worker = programs.worker("worker-1", tmp_path / "token", ("--model", "m"))
    assert told(worker) == set()
    assert told(programs.edge()) == {"database_url", "reservations_url"}
    assert told(programs.beat()) == {"broker_url"}
    assert told(programs.flower()) == {"broker_url", "result_backend"}
    assert told(programs.bridge(ready)) == {
        "broker_url",
        "result_backend",
        "database_url",
        "reservations_url",
    }


def test_no_address_stands_on_a_command_line(programs: Programs):
    for program in (programs.edge(), programs.beat(), programs.flower(), programs.bridge(ready)):
        assert not any("://" in word for word in program.argv)


def test_nothing_of_the_callers_environment_leaks(programs: Programs, tmp_path: Path):
    worker = programs.worker("worker-1", tmp_path / "token", ())
    for program in (worker, programs.edge(), programs.beat(), programs.bridge(ready)):
        assert "AWS_SECRET_ACCESS_KEY" not in program.environment
        assert "redis://mine" not in program.environment.values()
    assert worker.environment["CODEX_HOME"] == "/home/me/.codex"
    assert "CODEX_HOME" not in programs.edge().environment


def test_a_worker_is_told_one_url_one_token_and_its_arguments(programs: Programs, tmp_path: Path):
    argv = programs.worker("worker-1", tmp_path / "token", ("--model", "m")).argv
    assert argv[argv.index("--url") + 1] == "http://127.0.0.1:8080"
    assert argv[argv.index("--token-file") + 1] == str(tmp_path / "token")
    assert argv[-2:] == ("--model", "m")


def test_a_worker_is_ready_when_it_says_so_and_not_by_what_an_earlier_one_said(
    programs: Programs, tmp_path: Path
):
    first = programs.worker("worker-1", tmp_path / "token", ())
    assert not first.ready()
    first.log.write_text('{"message": "ready, as worker-1", "action": "ready"}\n')
    assert first.ready()
    assert not programs.worker("worker-1", tmp_path / "token", ()).ready()


def test_free_ports_are_all_different():
    assert len(set(servers.free_ports(50))) == 50
