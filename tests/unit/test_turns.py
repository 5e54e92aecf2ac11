"""A lock by turns: one at a time, in order, and none forgotten when someone gives up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.ledger.turns import Turns
from tests.processes import until


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_a_free_lock_is_taken_at_once_and_once(turns: Turns):
    assert turns.acquire(timeout_s=0)
    assert not turns.acquire(timeout_s=0)
    turns.release()
    assert turns.acquire(timeout_s=0)


def test_one_at_a_time(turns: Turns):
    inside, most = 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        assert turns.acquire(timeout_s=30)
        inside += 1
        most = max(most, inside)
        inside -= 1
        turns.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(2000)))
    assert (inside, most) == (0, 1)


def test_first_come_first_served_and_who_gave_up_is_passed_over(turns: Turns):
    served: list[int] = []
    patience_s = {0: 30.0, 1: 0.0, 2: 30.0, 3: 0.0, 4: 30.0}

    def wait(number: int) -> None:
        if turns.acquire(timeout_s=patience_s[number]):
            served.append(number)
            turns.release()

    assert turns.acquire(timeout_s=0)
    threads = []
    for number, waiting in enumerate((1, 1, 2, 2, 3)):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        if not patience_s[number]:
            threads[-1].join()
        until(lambda waiting=waiting: len(turns._waiting) == waiting)
    turns.release()
    for thread in threads:
        thread.join()
    assert served == [0, 2, 4]
    assert turns.acquire(timeout_s=0)


def test_a_turn_handed_over_in_the_moment_of_giving_up_is_kept(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
):
    class LateLock:
        """A lock whose wait ends in vain, in the very moment when it is handed over."""

        def acquire(self, timeout: float | None = None) -> bool:
            """Take it the first time, give up the second."""
            if timeout is not None:
                turns.release()
                return False
            return True

        def release(self) -> None:
            """Hand it over, too late."""

    assert turns.acquire(timeout_s=0)
    monkeypatch.setattr("broker.ledger.turns.threading.Lock", LateLock)
    assert turns.acquire(timeout_s=1)
    assert not turns._waiting
    turns.release()
    assert turns.acquire(timeout_s=0)
