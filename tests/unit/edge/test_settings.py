"""What the edge takes from its environment, and what it refuses to know."""

import pytest

from broker.errors import ConfigurationError
from edge_api.settings import RESERVE, EdgeSettings

HOME = {"HOME": "/nowhere"}


@pytest.mark.parametrize(
    "name,value",
    [
        ("DRAWBRIDGE_BROKER_URL", "redis://127.0.0.1/0"),
        ("CELERY_BROKER_URL", "redis://:secret@broker/0"),
        ("CELERY_BROKER_READ_URL", "redis://broker/0"),
        ("BROKER_URL", "sentinel://a;sentinel://b"),
        ("FLOWER_BROKER", "redis://broker"),
        ("RABBITMQ_URL", "http+unix://x"),
        ("CLOUDAMQP_URL", "amqps://u:secret@host/v"),
        ("ANYTHING", "amqp://guest@localhost//"),
        ("ANYTHING", "PyAMQP://guest@localhost//"),
    ],
)
def test_a_broker_in_the_environment_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as refusal:
        EdgeSettings.from_env(HOME | {name: value})
    assert "secret" not in refusal.value.message


@pytest.mark.parametrize(
    "name,value",
    [
        ("DRAWBRIDGE_BROKER_URL", ""),
        ("BROKER_DOCS", "https://docs.example/amqp"),
        ("MESSAGE_BROKER", "none"),
        ("DRAWBRIDGE_RESERVATIONS_URL", "redis://127.0.0.1/1"),
        ("NOTE", "see amqp://"),
    ],
)
def test_what_is_no_broker_is_let_pass(name: str, value: str) -> None:
    assert EdgeSettings.from_env(HOME | {name: value}).default_queue == "remote"


def test_the_stores_and_queues_are_read() -> None:
    settings = EdgeSettings.from_env(
        HOME
        | {
            "DRAWBRIDGE_DATABASE_URL": "postgresql://u:secret@h/d",
            "DRAWBRIDGE_QUEUES": "first, second",
            "DRAWBRIDGE_ARTIFACT_MAX_BYTES": "1000",
            "AUTH_PROVIDER": "Disabled",
        },
        threads=100,
    )
    assert settings.default_queue == "first"
    assert settings.queue.artifact_max_bytes == 1000
    assert settings.auth_disabled
    assert settings.waits_max == 100 - RESERVE
    assert "secret" not in repr(settings)


def test_credentials_are_asked_for_unless_told_otherwise() -> None:
    assert not EdgeSettings.from_env(HOME).auth_disabled
    assert EdgeSettings.from_env(HOME).waits_max == 1000
    with pytest.raises(ConfigurationError, match="AUTH_PROVIDER"):
        EdgeSettings.from_env(HOME | {"AUTH_PROVIDER": "off"})


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="DRAWBRIDGE_QEUES"):
        EdgeSettings.from_env(HOME | {"DRAWBRIDGE_QEUES": "x"})
