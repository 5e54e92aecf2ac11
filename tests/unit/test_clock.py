"""One clock for all processes, wrong for no longer than it must."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clock import RESYNC_S, RETRY_S, Clock, from_ms, to_ms
from broker.errors import LedgerUnavailable, ReservationsUnavailable

#: a wall clock that is an hour fast
HERE = 1_700_003_600.0
THERE = 1_700_000_000.0


class World:
    """A machine, the server's clock, and the time that a question takes."""

    def __init__(self) -> None:
        self.elapsed = 1000.0
        self.drift = 0.0
        self.away = False
        self.latency = 0.0
        self.asked = 0

    def monotonic(self) -> float:
        return self.elapsed

    def wall(self) -> float:
        return HERE + self.elapsed - 1000.0

    def server_ms(self) -> float:
        return (THERE + self.elapsed - 1000.0 + self.drift) * 1000

    def read_ms(self) -> float:
        self.asked += 1
        if self.away:
            raise ReservationsUnavailable
        self.elapsed += self.latency / 2
        answer = self.server_ms()
        self.elapsed += self.latency / 2
        return answer

    def clock(self) -> Clock:
        return Clock(self.read_ms, wall=self.wall, monotonic=self.monotonic)

    def error_s(self, clock: Clock) -> float:
        """Tell how wrong the clock is just now."""
        return abs(clock.now().timestamp() - self.server_ms() / 1000)


def test_it_is_the_servers_time_and_not_ours():
    world = World()
    clock = world.clock()
    assert clock.now() == datetime.fromtimestamp(THERE, UTC)
    assert clock.now().tzinfo is UTC


def test_it_goes_on_by_itself_between_two_looks():
    world = World()
    clock = world.clock()
    first = clock.now()
    world.elapsed += RESYNC_S - 0.1
    assert clock.now() - first == timedelta(seconds=RESYNC_S - 0.1)
    assert world.asked == 1


def test_it_looks_again_now_and_then():
    world = World()
    clock = world.clock()
    clock.now()
    world.elapsed += RESYNC_S
    world.drift = 2.0
    assert world.error_s(clock) < 1e-3
    assert world.asked == 2


def test_half_of_the_time_a_question_takes_is_counted():
    world = World()
    world.latency = 1.0
    clock = world.clock()
    assert world.error_s(clock) < 1e-3


def test_without_the_server_the_last_known_offset_holds():
    world = World()
    clock = world.clock()
    clock.now()
    world.away = True
    world.elapsed += 3600
    assert world.error_s(clock) < 1e-3


def test_without_any_look_it_is_our_own():
    world = World()
    world.away = True
    assert world.clock().now() == datetime.fromtimestamp(HERE, UTC)


def test_a_server_that_is_away_is_not_asked_at_every_turn():
    world = World()
    world.away = True
    clock = world.clock()
    for _ in range(100):
        clock.now()
    assert world.asked == 1
    world.elapsed += RETRY_S
    world.away = False
    assert world.error_s(clock) < 1e-3
    assert world.asked == 2


def test_our_own_clock_may_jump():
    world = World()
    jumped = [0.0]
    clock = Clock(world.read_ms, wall=lambda: world.wall() + jumped[0], monotonic=world.monotonic)
    before = clock.now()
    jumped[0] = 86_400.0
    world.elapsed += 1.0
    assert clock.now() - before == timedelta(seconds=1)


def test_a_process_that_never_reached_the_server_goes_by_the_ledger():
    world = World()
    world.away = True
    asked: list[float] = []

    def ledger_ms() -> float:
        asked.append(world.elapsed)
        if len(asked) == 1:
            raise LedgerUnavailable
        return world.server_ms() + 250

    clock = Clock(world.read_ms, else_ms=ledger_ms, wall=world.wall, monotonic=world.monotonic)
    assert clock.now() == datetime.fromtimestamp(HERE, UTC)  # nobody knows better
    world.elapsed += RETRY_S
    assert world.error_s(clock) == pytest.approx(0.25)
    world.elapsed += RETRY_S
    assert world.error_s(clock) == pytest.approx(0.25)
    assert len(asked) == 2
    world.elapsed += RETRY_S
    world.away = False
    assert world.error_s(clock) < 1e-3
    # once known, the server's own time goes on
    world.away = True
    world.elapsed += RESYNC_S
    assert world.error_s(clock) < 1e-3
    assert len(asked) == 2


class Slow:
    """A server whose answer takes until it is told to give it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asking = threading.Event()
        self.answer = threading.Event()

    def read_ms(self) -> float:
        self.asking.set()
        assert self.answer.wait(10)
        return self.world.server_ms()


def test_before_anything_is_known_one_asks_and_all_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("broker.clock.FIRST_S", 60.0)
    world = World()
    server = Slow(world)
    clock = Clock(server.read_ms, wall=world.wall, monotonic=world.monotonic)
    told: list[datetime] = []
    threads = [threading.Thread(target=lambda: told.append(clock.now())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert server.asking.wait(10)
    server.answer.set()
    for thread in threads:
        thread.join(10)
    assert told == [datetime.fromtimestamp(THERE, UTC)] * 4


def test_whoever_comes_while_another_asks_again_does_not_wait():
    world = World()
    server = Slow(world)
    clock = Clock(server.read_ms, wall=world.wall, monotonic=world.monotonic)
    server.answer.set()
    clock.now()
    server.asking.clear()
    server.answer.clear()
    world.elapsed += RESYNC_S
    world.drift = 2.0
    first = threading.Thread(target=clock.now)
    first.start()
    assert server.asking.wait(10)
    assert world.error_s(clock) == pytest.approx(2.0)
    server.answer.set()
    first.join(10)
    assert world.error_s(clock) < 1e-3


def test_another_failure_is_not_hidden():
    clock = Clock(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clock.now()
    # nor does it keep the clock locked
    with pytest.raises(ZeroDivisionError):
        clock.now()


@given(st.integers(0, 253_402_300_799_000))
def test_milliseconds_survive_the_way_there_and_back(ms: int):
    assert to_ms(from_ms(ms)) == ms
