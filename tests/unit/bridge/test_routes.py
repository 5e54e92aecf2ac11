"""Where a bridge without the orchestrator's app sends what follows a job."""

import logging

import pytest
from celery import Celery

from broker.bridge import maintenance
from broker.bridge.app import make_app
from broker.settings import BridgeSettings


@pytest.fixture
def app() -> Celery:
    told = BridgeSettings(
        broker_url="memory://", result_backend="cache+memory://", queues=("far", "farther")
    )
    return make_app(told)


def queue_of(app: Celery, name: str, **options: object) -> str:
    """Name the queue that Celery would publish to."""
    return str(app.amqp.router.route(options, name)["queue"].name)


@pytest.mark.parametrize("name", ["codex_exec", "command"])
def test_our_own_types_stay_on_a_bridged_queue(app: Celery, name: str) -> None:
    assert queue_of(app, name) == "far"
    assert queue_of(app, name, queue="farther") == "farther"


def test_other_names_go_where_celery_sends_them_and_are_said_once(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "broker.bridge.app"):
        assert queue_of(app, "mine.total", queue="far") == "far"
        assert queue_of(app, "celery.backend_cleanup") == "celery"
        assert queue_of(app, maintenance.PREFIX + "prune", queue=maintenance.QUEUE) != "far"
        assert caplog.messages == []
        assert [queue_of(app, "mine.total") for _ in range(2)] == ["celery"] * 2
    [said] = caplog.messages
    assert "'mine.total'" in said
    assert "-A proj.celery" in said
