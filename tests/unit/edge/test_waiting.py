"""Who waits, who is woken, and that no wake-up is lost between two waiters."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from broker.errors import LedgerUnavailable, ReservationsUnavailable
from broker.policy import Eligibility, Lane, Policy, merge
from broker.records import ClaimRequest
from edge_api.line import HOPS_MAX, Crowded
from edge_api.waiting import Waiting
from tests.processes import until

LANE = Lane("q", "t", None, ())
OTHER = Lane("q", "u", None, ())
LONG_S = 50.0
#: below LONG_S, and every look of its own that a waiter might make
WOKEN_S = 25.0


class Jobs:
    """A queue with as many jobs as it is told; counts who asked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = 0
        self.asked: list[str] = []
        self.broken: Exception | None = None
        #: called within a claim, after it took its job
        self.meanwhile: Callable[[str], None] = lambda _worker: None

    def claim(self, request: ClaimRequest) -> list[Any]:
        with self.lock:
            self.asked.append(request.worker_id)
            if self.broken is not None:
                raise self.broken
            got = min(self.left, 1)
            self.left -= got
        self.meanwhile(request.worker_id)
        return [f"job for {request.worker_id}"] * got

    @staticmethod
    def eligibility(request: ClaimRequest) -> Eligibility:
        return merge(request.policy, allowed_types=request.allowed_types)


class Bench:
    """Waiters on threads, and a hand on the wake-ups."""

    def __init__(
        self,
        *,
        capacity: int = 100,
        look_every_s: float = 30.0,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = Jobs()
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.listened = 0
        self.seen: list[str] = []
        self.pool = ThreadPoolExecutor(64)
        self.waiting = Waiting(
            self.jobs,
            wakes=self.wakes,
            lane=self.lane,
            seen=self.seen.append,
            capacity=capacity,
            look_every_s=look_every_s,
            timer=timer,
        )

    def wakes(self) -> Iterator[tuple[str, str, int] | None]:
        self.listened += 1
        while True:
            try:
                message = self.messages.get(timeout=0.01)
            except queue.Empty:
                yield None
                continue
            if isinstance(message, Exception):
                raise message
            yield message

    @staticmethod
    def lane(_queue: str, key: str) -> Lane | None:
        return {"t": LANE, "u": OTHER}.get(key)

    def wake(self, n: int = 1, lane: str = "t") -> None:
        self.messages.put(("q", lane, n))

    def start(self, name: str, *, wait_s: float = LONG_S, **policy: Any) -> Future[list[Any]]:
        """Start a waiter and return once it sleeps."""
        request = ClaimRequest(worker_id=name, policy=Policy(**policy), lease_seconds=60)
        asked = self.asked(name)
        before = len(self.waiting)
        future = self.pool.submit(self.waiting.claim, request, wait_s=wait_s)
        until(lambda: self.asked(name) >= asked + 2 and len(self.waiting) > before)
        return future

    def asked(self, name: str) -> int:
        with self.jobs.lock:
            return self.jobs.asked.count(name)

    def settled(self, name: str, times: int) -> None:
        until(lambda: self.asked(name) == times)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def start(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield start
    for bench in made:
        bench.waiting.join()
        bench.pool.shutdown()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


def test_who_does_not_wait_asks_once(bench: Bench) -> None:
    request = ClaimRequest(worker_id="a", policy=Policy(), lease_seconds=60)
    assert bench.waiting.claim(request, wait_s=0) == []
    bench.jobs.left = 1
    assert bench.waiting.claim(request, wait_s=LONG_S) == ["job for a"]
    assert bench.asked("a") == 2
    assert bench.listened == 0


def test_one_wake_up_wakes_the_oldest_alone(bench: Bench) -> None:
    oldest, *others = [bench.start(name) for name in "abcd"]
    bench.jobs.left = 1
    bench.wake()
    assert oldest.result(WOKEN_S) == ["job for a"]
    assert [bench.asked(name) for name in "abcd"] == [3, 2, 2, 2]
    assert not any(other.done() for other in others)


def test_a_wake_up_for_several_wakes_as_many(bench: Bench) -> None:
    waiters = [bench.start(name) for name in "abcd"]
    bench.jobs.left = 3
    bench.wake(3)
    assert [waiter.result(WOKEN_S) for waiter in waiters[:3]] == [[f"job for {n}"] for n in "abc"]
    assert bench.asked("d") == 2


def test_only_those_are_woken_who_may_run_the_lane(bench: Bench) -> None:
    bench.start("a", types=("u",))
    able = bench.start("b", types=("t",))
    bench.jobs.left = 1
    bench.wake()
    assert able.result(WOKEN_S) == ["job for b"]
    assert bench.asked("a") == 2


def test_a_lane_nobody_knows_is_anybodys(bench: Bench) -> None:
    waiter = bench.start("a", types=("u",))
    bench.jobs.left = 1
    bench.wake(lane="?")
    assert waiter.result(WOKEN_S) == ["job for a"]


def test_two_wake_ups_wake_two(bench: Bench) -> None:
    waiters = [bench.start(name) for name in "ab"]
    bench.jobs.left = 2
    bench.wake()
    bench.wake()
    assert [waiter.result(WOKEN_S) for waiter in waiters] == [["job for a"], ["job for b"]]


def test_a_wake_up_that_meets_a_winner_goes_to_the_next(bench: Bench) -> None:
    first, second = bench.start("a"), bench.start("b")
    won, woken = threading.Event(), threading.Event()

    def meanwhile(worker: str) -> None:
        if worker == "a" and not won.is_set():
            won.set()
            woken.wait(5)

    bench.jobs.meanwhile = meanwhile
    bench.jobs.left = 1
    bench.wake()
    assert won.wait(5)
    # a has its job and has not left yet; the word of the next job reaches it all the same
    with bench.jobs.lock:
        bench.jobs.left = 1
    bench.wake()
    until(lambda: bench.waiting._line.waiters[0].wake is not None)
    woken.set()
    assert first.result(WOKEN_S) == ["job for a"]
    assert second.result(WOKEN_S) == ["job for b"]


def test_a_loser_keeps_its_place(bench: Bench) -> None:
    first, second = bench.start("a"), bench.start("b")
    bench.wake()  # somebody elsewhere was faster
    bench.settled("a", 3)
    until(lambda: bench.waiting._line.waiters[0].wake is None)
    bench.jobs.left = 1
    bench.wake()
    assert first.result(WOKEN_S) == ["job for a"]
    assert not second.done()


def test_a_waiter_without_a_free_place_hands_the_wake_up_on(bench: Bench) -> None:
    bench.start("busy", max_concurrency=1)
    free = bench.start("free")
    claim = bench.jobs.claim

    def refuse_busy(request: ClaimRequest) -> list[Any]:
        if request.worker_id == "busy":
            with bench.jobs.lock:
                bench.jobs.asked.append("busy")
            return []
        return claim(request)

    bench.jobs.claim = refuse_busy  # type: ignore[method-assign]
    bench.jobs.left = 1
    bench.wake()
    assert free.result(WOKEN_S) == ["job for free"]


def test_a_wake_up_is_not_handed_on_for_ever(bench: Bench) -> None:
    for number in range(HOPS_MAX + 3):
        bench.start(str(number), max_concurrency=1)
    bench.wake()
    for number in range(HOPS_MAX + 1):
        bench.settled(str(number), 3)
    assert [bench.asked(str(HOPS_MAX + more)) for more in (1, 2)] == [2, 2]


def test_everybody_looks_by_itself_now_and_then(make: Callable[..., Bench]) -> None:
    bench = make(look_every_s=0.02)
    waiter = bench.start("a")
    bench.jobs.left = 1  # and no wake-up: Redis dropped it
    assert waiter.result(WOKEN_S) == ["job for a"]
    assert bench.seen.count("a") >= 1


def test_one_looks_for_all_who_see_the_same(make: Callable[..., Bench]) -> None:
    now = 0.0
    bench = make(look_every_s=0.02, timer=lambda: now)
    names = ["a", "b", "c"]
    for name in names:
        bench.start(name)
    until(lambda: all(bench.seen.count(name) > 5 for name in names))
    assert [bench.asked(name) for name in names] == [2, 2, 2]
    now = 1.0
    until(lambda: sum(bench.asked(name) for name in names) > 6)


def test_who_may_hold_so_many_looks_for_nobody_else(make: Callable[..., Bench]) -> None:
    bench = make(look_every_s=0.02, timer=lambda: 0.0)
    bench.start("full", max_concurrency=1)
    waiter = bench.start("other", max_concurrency=2)
    until(lambda: bench.asked("full") > 5 and bench.asked("other") > 5)
    bench.jobs.left = 2
    assert waiter.result(WOKEN_S) == ["job for other"]


def test_a_wait_ends_in_time_with_a_last_look(bench: Bench) -> None:
    request = ClaimRequest(worker_id="a", policy=Policy(), lease_seconds=60)
    assert bench.waiting.claim(request, wait_s=0.02) == []
    assert bench.asked("a") == 3
    assert len(bench.waiting) == 0


def test_stop_ends_every_wait_at_once(bench: Bench) -> None:
    waiters = [bench.start(name) for name in "abc"]
    poller = bench.pool.submit(bench.waiting.poll, list, wait_s=LONG_S)
    until(lambda: len(bench.waiting) == 4)
    bench.waiting.stop()
    bench.waiting.stop()
    assert [one.result(WOKEN_S) for one in (*waiters, poller)] == [[], [], [], []]
    request = ClaimRequest(worker_id="late", policy=Policy(), lease_seconds=60)
    assert bench.waiting.claim(request, wait_s=LONG_S) == []
    assert len(bench.waiting) == 0


def test_there_are_only_so_many_places(make: Callable[..., Bench]) -> None:
    bench = make(capacity=2)
    first = bench.start("a")
    poller = bench.pool.submit(bench.waiting.poll, list, wait_s=LONG_S)
    until(lambda: len(bench.waiting) == 2)
    request = ClaimRequest(worker_id="c", policy=Policy(), lease_seconds=60)
    with pytest.raises(Crowded):
        bench.waiting.claim(request, wait_s=LONG_S)
    with pytest.raises(Crowded):
        bench.waiting.poll(list, wait_s=LONG_S)
    bench.jobs.left = 1
    assert bench.waiting.claim(request, wait_s=LONG_S) == ["job for c"]
    assert bench.waiting.poll(lambda: [1], wait_s=LONG_S) == [1]
    assert not first.done()
    assert not poller.done()


def test_a_refusal_ends_the_wait_and_frees_the_wake_up(bench: Bench) -> None:
    first, second = bench.start("a"), bench.start("b")
    with bench.jobs.lock:
        bench.jobs.broken = LedgerUnavailable()
    bench.wake()
    with pytest.raises(LedgerUnavailable):
        first.result(WOKEN_S)
    with bench.jobs.lock:
        bench.jobs.broken, bench.jobs.left = None, 1
    bench.wake()
    assert second.result(WOKEN_S) == ["job for b"]


@pytest.mark.parametrize("error", [ReservationsUnavailable(), RuntimeError("bug")])
def test_the_listener_lives_on(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_api.waiting.RELISTEN_S", 0.01)
    waiter = bench.start("a")
    bench.messages.put(error)
    until(lambda: bench.listened == 2)
    bench.jobs.left = 1
    bench.wake()
    assert waiter.result(WOKEN_S) == ["job for a"]


def test_a_poll_looks_until_it_finds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_api.waiting.POLL_EVERY_S", 0.001)
    answers = iter([[], [], ["x"]])
    assert bench.waiting.poll(lambda: next(answers), wait_s=LONG_S) == ["x"]
    assert bench.waiting.poll(list, wait_s=0.01) == []
    assert len(bench.waiting) == 0


def test_whoever_says_goodbye_waits_no_more_and_gets_nothing(make: Callable[..., Bench]):
    bench = make()
    going = ClaimRequest(
        worker_id="w", policy=Policy(), lease_seconds=60, instance_id="old",
    )  # fmt: skip
    future = bench.pool.submit(bench.waiting.claim, going, wait_s=LONG_S)
    until(lambda: bench.asked("w") >= 2 and len(bench.waiting) == 1)
    bench.waiting.bye("w", "another")
    bench.waiting.bye("stranger", "old")
    assert not future.done()
    bench.waiting.bye("w", "old")
    assert future.result(WOKEN_S) == []
    # a claim it had sent before may arrive after; its next start is somebody else
    bench.jobs.left = 2
    assert bench.waiting.claim(going, wait_s=LONG_S) == []
    again = ClaimRequest(worker_id="w", policy=Policy(), lease_seconds=60, instance_id="new")
    assert bench.waiting.claim(again, wait_s=0) == ["job for w"]
