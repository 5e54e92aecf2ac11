"""Fixtures that every test folder shares, and the loud list of what was skipped at home."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import fakeredis
import pytest
import redis

from broker.ledger import migrate
from deploy.demo import install_codex
from tests.clusters import Cluster
from tests.order import longest_first
from tests.processes import FOREIGN, Starter
from tests.services import AT_HOME, Postgres, Process, Valkey, missing

PROCESSES = pytest.StashKey[list[Process]]()


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]


# last: pytest-randomly draws the rest of the order
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first."""
    longest_first(items)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """Give the session's Valkey; a test that stops or fills it asks `start_valkey` for its own."""
    server = Valkey().start()
    yield server
    server.remove()


@pytest.fixture
def start_valkey() -> Iterator[Callable[..., Valkey]]:
    """Start any number of Valkeys, each with the command line options given."""
    servers: list[Valkey] = []

    def start(*options: str) -> Valkey:
        servers.append(Valkey(*options))
        return servers[-1].start()

    yield start
    for server in reversed(servers):
        server.remove()


@pytest.fixture
def valkey_url(valkey_server: Valkey) -> str:
    """Give the address of the session's Valkey, emptied."""
    with valkey_server.client() as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[Cluster]:
    """Give the session's cluster of three Valkeys; who stops one makes a cluster of its own."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(params=["fake", "real", "cluster"])
def reservations_redis(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """Give an empty Redis: a fake one, then a real one, then a cluster."""
    if request.param == "fake":
        with fakeredis.FakeRedis(decode_responses=True) as client:
            yield client
        return
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("valkey_cluster")
        cluster.client.flushall()
        yield cluster.client
        return
    server: Valkey = request.getfixturevalue("valkey_server")
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """Give the session's PostgreSQL."""
    server = Postgres().start()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """Give the address of an empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the address of an empty database: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a ledger without jobs, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("ledger") / "migrated.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Postgres) -> str:
    """Give the address of a ledger without jobs, to copy."""
    url = postgres_server.create_database()
    migrate.upgrade(url)
    return url


@pytest.fixture
def postgres_ledger_url(postgres_server: Postgres, migrated_postgres: str) -> Iterator[str]:
    """Give the address of a ledger without jobs on PostgreSQL."""
    url = postgres_server.create_database(like=migrated_postgres)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, migrated_sqlite: Path, tmp_path: Path) -> str:
    """Give the address of a ledger without jobs: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}"
    url: str = request.getfixturevalue("postgres_ledger_url")
    return url


@pytest.fixture
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Starter]:
    """Start processes; all are ended with the test, and a failure shows the end of their logs."""
    with closing(Starter(tmp_path, request.node.stash.setdefault(PROCESSES, []))) as start:
        yield start


@pytest.fixture(scope="module")
def module_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Starter]:
    """Start processes that the tests of a module share."""
    started = request.node.stash.setdefault(PROCESSES, [])
    with closing(Starter(tmp_path_factory.mktemp("processes"), started)) as start:
        yield start


@pytest.fixture(scope="session")
def codex() -> str:
    """Give the path of the real Codex CLI, which `make test` has installed."""
    found = install_codex.find()
    if found is None:
        missing("the Codex CLI is neither on PATH nor in .demo/codex (`make test` gets it by npm)")
    return found.path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the logs of a failed test's processes."""
    report = yield
    if report.failed:
        for node in item.listchain():
            for one in node.stash.get(PROCESSES, []):
                report.sections.append((f"end of the log of {one}", one.tail()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not tested here, how much of it, and why."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if not reasons:
        return
    terminalreporter.section("SKIPPED", sep="=", yellow=True, bold=True)
    for reason, number in sorted(reasons.items()):
        tests = f"{number} test{'s' if number > 1 else ''}"
        where, rest = ("HERE", "")
        if reason.startswith(AT_HOME):
            where, rest = ("AT HOME", "; CI fails instead")
        because = reason.removeprefix(AT_HOME)
        line = f"SKIPPED {where}: {tests}, because {because}{rest}"
        terminalreporter.write_line(line, yellow=True)
