"""The revisions make exactly the tables of the models, once, on both databases."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from broker.errors import ConfigurationError
from broker.ledger import migrate, revisions
from broker.ledger.engine import Ledger
from broker.ledger.models import Base, BridgeStateRow


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    """Give a ledger without tables."""
    ledger = Ledger(database_url)
    yield ledger
    ledger.close()


def described(ledger: Ledger) -> dict[str, Any]:
    """Read back all the database knows of its tables, but alembic's own."""
    inspector = sa.inspect(ledger.engine)

    def by_text(things: Iterable[Any]) -> list[str]:
        return sorted(str(sorted(thing.items())) for thing in things)

    def index(one: Any) -> dict[str, str]:
        return {**one, "dialect_options": {k: str(v) for k, v in one["dialect_options"].items()}}

    return {
        table: [
            [
                (column["name"], str(column["type"]), column["nullable"], column.get("default"))
                for column in inspector.get_columns(table)
            ],
            by_text([inspector.get_pk_constraint(table)]),
            by_text(inspector.get_unique_constraints(table)),
            by_text(inspector.get_check_constraints(table)),
            by_text(inspector.get_foreign_keys(table)),
            by_text(map(index, inspector.get_indexes(table))),
        ]
        for table in sorted(inspector.get_table_names())
        if table != "alembic_version"
    }


def drop_everything(ledger: Ledger) -> None:
    with ledger.write() as connection:
        Base.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))


def test_an_empty_ledger_is_made_and_a_second_time_nothing_happens(
    database_url: str, ledger: Ledger
):
    assert not revisions.check(ledger)
    done = migrate.upgrade(database_url)
    assert (done.before, done.after) == (None, revisions.head())
    assert revisions.check(ledger)
    before = described(ledger)
    done = migrate.upgrade(database_url)
    assert (done.before, done.after) == (revisions.head(), revisions.head())
    assert described(ledger) == before


def test_the_row_that_numbers_jobs_is_there(database_url: str, ledger: Ledger):
    migrate.upgrade(database_url)
    with ledger.read() as connection:
        rows = connection.execute(sa.select(BridgeStateRow.__table__)).all()
    assert rows == [(1, 0, datetime(1970, 1, 1, tzinfo=UTC))]


def test_alembic_finds_no_difference_between_revisions_and_models(
    database_url: str, ledger: Ledger
):
    migrate.upgrade(database_url)
    config = migrate.config()
    with ledger.write() as connection:
        config.attributes["connection"] = connection
        command.check(config)


def test_the_database_finds_no_difference_either(database_url: str, ledger: Ledger):
    migrate.upgrade(database_url)
    made = described(ledger)
    drop_everything(ledger)
    with ledger.write() as connection:
        Base.metadata.create_all(connection)
    models = described(ledger)
    assert list(made) == list(models)
    for table in models:
        assert made[table] == models[table], table


def test_upgrades_at_once_make_the_ledger_once(database_url: str, ledger: Ledger):
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(migrate.upgrade, [database_url] * 4))
    assert {one.after for one in done} == {revisions.head()}
    assert revisions.check(ledger)
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(BridgeStateRow)) == 1


def test_an_upgrade_that_fails_leaves_nothing(
    database_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    whole = command.upgrade

    def fail(config: Config, revision: str) -> None:
        whole(config, revision)
        raise OSError("the power went")

    monkeypatch.setattr(command, "upgrade", fail)
    with pytest.raises(OSError, match="power"):
        migrate.upgrade(database_url)
    assert described(ledger) == {}
    monkeypatch.undo()
    migrate.upgrade(database_url)
    assert revisions.check(ledger)


def test_a_ledger_from_the_future_is_left_alone(database_url: str, ledger: Ledger):
    migrate.upgrade(database_url)
    with ledger.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    before = described(ledger)
    assert not revisions.check(ledger)
    with pytest.raises(ConfigurationError, match="9999"):
        migrate.upgrade(database_url)
    assert described(ledger) == before


def test_a_file_is_named_for_its_revision_and_the_last_is_the_newest():
    scripts = ScriptDirectory.from_config(migrate.config())
    assert scripts.get_heads() == [revisions.head()]
    for one in scripts.walk_revisions():
        assert Path(one.path).name.startswith(f"{one.revision}_")


def test_revisions_import_nothing_of_ours():
    for revision in Path(revisions.SCRIPTS, "versions").glob("[0-9]*.py"):
        assert "broker" not in revision.read_text(encoding="utf-8")


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from broker.ledger.migrate import upgrade

left = int(sys.argv[2])

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def _count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

upgrade(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.faults
def test_a_migration_that_is_killed_leaves_nothing_and_is_done_again(
    ledger: Ledger, database_url: str
):
    argv = [sys.executable, "-c", KILLED, database_url, "30"]
    killed = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert revisions.revisions(ledger).current is None
    assert described(ledger) == {}
    assert migrate.upgrade(database_url).before is None
    assert revisions.revisions(ledger).at_head
