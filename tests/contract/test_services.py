"""The tests' own servers and processes do what the other tests believe of them."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from tests.processes import Process, until
from tests.services import Postgres, Valkey

ORPHAN = """
import subprocess, sys
from pathlib import Path
from tests.processes import Process, guard
folder = Path(sys.argv[1]) / "guarded"
folder.mkdir()
guard(folder)
child = Process([sys.executable, "-c", "import time; time.sleep(600)"],
                log=Path(sys.argv[1]) / "child.log")
print("child", child.pid, flush=True)
child.wait(600)
"""


@pytest.mark.parametrize("reservations_redis", ["fake", "real"], indirect=True)
def test_redis_is_empty_and_knows_lua(reservations_redis: redis.Redis) -> None:
    assert reservations_redis.dbsize() == 0
    reservations_redis.set("left", "behind")
    assert reservations_redis.eval("return redis.call('GET', KEYS[1])", 1, "left") == "behind"


def test_a_killed_valkey_starts_again_at_the_same_address_and_empty(
    start_valkey: Callable[..., Valkey],
) -> None:
    server = start_valkey()
    with server.client() as client:
        client.set("a", "1")
        server.kill()
        with pytest.raises(redis.exceptions.ConnectionError):
            client.ping()
        server.start()
        assert client.get("a") is None


def test_a_valkey_with_an_append_only_file_keeps_its_data(
    start_valkey: Callable[..., Valkey],
) -> None:
    server = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    with server.client() as client:
        client.set("a", "1")
        server.kill()
        server.start()
        assert client.get("a") == "1"


@pytest.mark.postgres
@pytest.mark.parametrize("_", range(2))
def test_each_test_has_a_database_of_its_own(postgres_url: str, _: int) -> None:
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE mine (id int)")


@pytest.mark.slow
@pytest.mark.postgres
def test_a_killed_postgres_keeps_what_was_committed() -> None:
    server = Postgres(fsync=True).start()
    try:
        url = server.create_database().replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (id int)")
        server.kill()
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    finally:
        server.remove()
    assert not server.folder.exists()


def test_closing_a_process_ends_what_it_started_elsewhere(
    process: Callable[..., Process],
) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "print('child', child.pid)\n"
        "time.sleep(600)"
    )
    parent = process([sys.executable, "-c", program])
    child = psutil.Process(int(parent.wait_for(r"child (\d+)")[1]))
    assert parent.kill() == -signal.SIGKILL
    assert child.is_running()
    parent.close()
    until(lambda: not child.is_running(), what="the child is gone")


def test_a_process_that_ends_early_fails_the_wait_with_its_log(
    process: Callable[..., Process],
) -> None:
    dead = process([sys.executable, "-c", "raise SystemExit('no such luck')"])
    with pytest.raises(pytest.fail.Exception, match=r"ended first, with 1:\nno such luck"):
        dead.wait_for("ready")


def test_tests_that_are_killed_leave_nothing_behind(
    process: Callable[..., Process], tmp_path: Path
) -> None:
    tests = process([sys.executable, "-c", ORPHAN, tmp_path], cwd=Path(__file__).parents[2])
    child = psutil.Process(int(tests.wait_for(r"child (\d+)")[1]))
    os.kill(tests.pid, signal.SIGKILL)
    until(lambda: not child.is_running(), what="the child is gone")
    until(lambda: not (tmp_path / "guarded").exists(), what="the folder is gone")
