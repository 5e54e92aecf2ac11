"""What the logs of bridge and beat say of the nudges: nothing, unless something is wrong."""

import logging
from collections.abc import Iterator

import pytest
from celery.beat import ScheduleEntry, Scheduler

from broker.bridge import maintenance
from broker.bridge.app import make_app
from broker.settings import BridgeSettings

TRACE = logging.getLogger("celery.app.trace")
NUDGE = {"id": "1", "name": maintenance.PREFIX + "reconcile"}
TASK = {"id": "1", "name": "celery.chord_unlock"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = {name: list(logging.getLogger(name).filters) for name in maintenance._SAYERS}
    maintenance.quiet()
    maintenance.quiet()
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters = filters


def test_a_nudge_is_no_news_and_what_goes_wrong_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        TRACE.info("Task %(name)s[%(id)s] succeeded", NUDGE)
        TRACE.info("Task %(name)s[%(id)s] succeeded", TASK)
        TRACE.error("Task %(name)s[%(id)s] raised", NUDGE)
        TRACE.info("nothing of a task")
    assert caplog.messages == [
        "Task celery.chord_unlock[1] succeeded",
        "Task drawbridge.reconcile[1] raised",
        "nothing of a task",
    ]


@pytest.mark.parametrize("level, lines", [(logging.INFO, 0), (logging.DEBUG, 1)])
def test_beat_says_what_it_sends_only_when_asked(
    caplog: pytest.LogCaptureFixture, level: int, lines: int
) -> None:
    app = make_app(BridgeSettings(broker_url="memory://", result_backend="cache+memory://"))
    scheduler = Scheduler(app, lazy=True)
    name = maintenance.PREFIX + "expire_leases"
    entry = ScheduleEntry(app=app, name=name, **maintenance.schedule()[name])
    with caplog.at_level(level):
        scheduler.apply_entry(entry)
    assert len([one for one in caplog.messages if "Sending due task" in one]) == lines
