"""What Celery's consumer does to its connection after one was lost, on a bridge."""

import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.worker.consumer import Consumer

from broker.bridge.app import install


def restores(app: Celery) -> bool:
    """Tell whether the end of a task, in its thread, changes the prefetch on the broker."""
    consumer = Consumer.__new__(Consumer)
    consumer.app, consumer.prefetch_multiplier = app, 1
    consumer.pool = SimpleNamespace(num_processes=4)
    consumer.qos = Mock(_mutex=threading.Lock(), value=3)
    consumer._maximum_prefetch_restored = False
    consumer._restore_prefetch_count_after_connection_restart(None)
    return bool(consumer.qos.set.called)


def test_no_task_speaks_on_the_connection_that_the_loop_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("DRAWBRIDGE_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    app = Celery("orchestrator", broker="amqp://guest@127.0.0.1:1//")
    assert restores(app)
    install(app)
    assert not restores(app)
