import logging
import threading

import pytest
from kombu.exceptions import OperationalError

from broker.bridge import loops
from broker.bridge.loops import Loop, is_outage
from broker.errors import LedgerUnavailable
from tests.processes import until


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loops, "PAUSE_S", 0.0)


def test_a_loop_repeats_its_step_until_it_is_stopped():
    steps = threading.Semaphore(0)
    loop = Loop("steps", lambda: steps.release() or 0.0)
    loop.stop()  # before its start: nothing
    assert loop.join()
    loop.start()
    loop.start()
    for _ in range(3):
        assert steps.acquire(timeout=5)
    loop.stop()
    loop.stop()
    assert loop.join()
    assert loop.join()


def test_a_long_pause_does_not_hold_up_a_stop():
    stepped = threading.Event()
    loop = Loop("idle", lambda: stepped.set() or 3600.0)
    loop.start()
    assert stepped.wait(5)
    loop.stop()
    assert loop.join()


def test_a_loop_outlives_its_errors_and_counts_them(caplog: pytest.LogCaptureFixture):
    answers = iter([ValueError("a"), LedgerUnavailable("b"), LedgerUnavailable("b"), 0.0])
    ended = threading.Event()

    def step() -> float:
        answer = next(answers, None)
        if answer is None:
            ended.set()
            return 3600.0
        if isinstance(answer, Exception):
            raise answer
        return answer

    loop = Loop("shaky", step)
    with caplog.at_level(logging.INFO, "broker.bridge.loops"):
        loop.start()
        assert ended.wait(5)
        until(lambda: "shaky works again" in caplog.messages)
        loop.stop()
        assert loop.join()
    assert loop.failures == 3
    assert caplog.messages == ["shaky failed", "shaky works again"]
    assert caplog.records[0].exc_info is not None


def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture):
    tries = threading.Semaphore(0)

    def step() -> float:
        tries.release()
        raise LedgerUnavailable

    loop = Loop("waiting", step)
    loop.start()
    for _ in range(4):
        assert tries.acquire(timeout=5)
    loop.stop()
    assert loop.join()
    assert [m for m in caplog.messages if "waiting waits" in m] == [
        "waiting waits: The ledger does not answer; ask again."
    ]


def test_what_counts_as_an_outage():
    assert is_outage(OperationalError("broker"))
    assert is_outage(ConnectionRefusedError())
    assert is_outage(LedgerUnavailable())
    assert not is_outage(ValueError("a row"))
    assert not is_outage(KeyError("a row"))
