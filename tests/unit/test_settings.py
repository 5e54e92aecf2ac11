"""What a process is told by its environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.settings import (
    NAMES,
    BridgeSettings,
    Environment,
    QueueSettings,
    StoreSettings,
)


def test_an_empty_environment_gives_the_defaults():
    stores = StoreSettings.from_env({})
    home = Path("~/.local/share/drawbridge").expanduser()
    assert stores.database_url == f"sqlite:///{home}/ledger.sqlite3"
    assert stores.artifacts_dir == home / "artifacts"
    assert stores.sqlite_synchronous == "FULL"
    assert QueueSettings.from_env({}) == QueueSettings()
    assert BridgeSettings.from_env({}) == BridgeSettings()


def test_the_data_folder_moves_what_has_no_place_of_its_own():
    stores = StoreSettings.from_env({"DRAWBRIDGE_DATA_DIR": "/data"})
    assert stores.database_url == "sqlite:////data/ledger.sqlite3"
    assert stores.artifacts_dir == Path("/data/artifacts")
    stores = StoreSettings.from_env({"XDG_DATA_HOME": "/share", "DRAWBRIDGE_ARTIFACTS_DIR": "/a"})
    assert stores.database_url == "sqlite:////share/drawbridge/ledger.sqlite3"
    assert stores.artifacts_dir == Path("/a")


def test_every_name_is_read_by_someone_or_belongs_to_another_process():
    values = {
        "DRAWBRIDGE_DATABASE_URL": "postgresql://u:secret@h/d",
        "DRAWBRIDGE_RESERVATIONS_URL": "redis://:secret@h/1",
        "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "normal",
        "DRAWBRIDGE_ARTIFACT_MAX_BYTES": "10",
        "DRAWBRIDGE_KEEP_JOBS_DAYS": "3",
        "DRAWBRIDGE_BROKER_URL": "redis://:secret@h/0",
        "DRAWBRIDGE_RESULT_BACKEND": "redis://:secret@h/0",
        "DRAWBRIDGE_QUEUES": " gpu , , laptop",
        "DRAWBRIDGE_DECLARE_QUEUES": "True",
    }
    stores = StoreSettings.from_env(values)
    queue = QueueSettings.from_env(values)
    bridge = BridgeSettings.from_env(values)
    assert stores.database_url == "postgresql://u:secret@h/d"
    assert stores.sqlite_synchronous == "NORMAL"
    assert (queue.artifact_max_bytes, queue.keep_jobs) == (10, timedelta(days=3))
    assert bridge.queues == ("gpu", "laptop")
    assert bridge.declare_queues
    assert "secret" not in f"{stores!r}{bridge!r}"


@pytest.mark.parametrize(
    "name, near",
    [
        ("DRAWBRIDGE_DATABASE_ULR", "DRAWBRIDGE_DATABASE_URL"),
        ("DRAWBRIDGE_QUEUE", "DRAWBRIDGE_QUEUES"),
        ("DRAWBRIDGE_BROKERURL", "DRAWBRIDGE_BROKER_URL"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error_that_names_the_near_match(name: str, near: str):
    with pytest.raises(ConfigurationError) as raised:
        StoreSettings.from_env({name: "secret"})
    assert raised.value.message == f"There is no setting {name}; did you mean {near}?"


@pytest.mark.parametrize("name", ["DRAWBRIDGE_ZZZ", "DRAWBRIDGE_CODEX_HOME", "DRAWBRIDGE_"])
def test_a_name_near_to_nothing_is_an_error_too(name: str):
    with pytest.raises(ConfigurationError, match=rf"no setting {name} here"):
        StoreSettings.from_env({name: "1"})


def test_other_programs_names_are_none_of_ours():
    assert StoreSettings.from_env({"DRAWBRIDGES": "1", "BROKER_URL": "x"})


def test_reading_a_name_that_is_not_registered_is_a_mistake():
    with pytest.raises(LookupError):
        Environment({}).get("DRAWBRIDGE_NOT_REGISTERED")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "many", "²", "٣", "1" * 5000, "0x10"])
def test_a_number_that_is_none_or_out_of_bounds_is_refused_by_name(value: str):
    with pytest.raises(ConfigurationError, match="DRAWBRIDGE_ARTIFACT_MAX_BYTES"):
        QueueSettings.from_env({"DRAWBRIDGE_ARTIFACT_MAX_BYTES": value})


def test_a_flag_is_true_or_false():
    with pytest.raises(ConfigurationError, match="DRAWBRIDGE_DECLARE_QUEUES"):
        BridgeSettings.from_env({"DRAWBRIDGE_DECLARE_QUEUES": "yes"})


def test_an_empty_value_counts_as_not_set():
    values = dict.fromkeys(NAMES, " ")
    assert StoreSettings.from_env(values) == StoreSettings.from_env({})
    assert QueueSettings.from_env(values) == QueueSettings()
    assert BridgeSettings.from_env(values) == BridgeSettings()
