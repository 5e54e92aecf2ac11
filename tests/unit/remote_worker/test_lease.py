"""When a lease is ours, by our own clock and by the edge's word."""

import threading
from collections.abc import Callable

import pytest

from remote_worker.errors import Interruption, LeaseLost, Unanswered
from remote_worker.job import Beat, Job, parse_job
from remote_worker.lease import Lease, Terms, interval_s, margin_s
from remote_worker.wire import Wire
from tests.processes import until
from tests.unit.remote_worker.edge import Answer, FakeEdge, error_page, refusal


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def job(edge: FakeEdge) -> Job:
    return parse_job(edge.offer().job)


@pytest.fixture
def make_lease(wire: Wire, job: Job, time: Time) -> Callable[..., Lease]:
    def make(*, lease_s: int = 60, every_s: float = 3600.0, **more: Callable[[], None]) -> Lease:
        terms = Terms(lease_s=lease_s, interval_s=every_s, clock=time, draw=lambda low, _: low)
        return Lease(wire, job, terms=terms, **more)

    return make


def test_the_pace() -> None:
    assert [interval_s(lease) for lease in (1, 3, 60, 3600)] == [1, 1, 20, 1200]
    assert interval_s(60, 5) == 5
    assert interval_s(60, 500) == 20
    assert interval_s(60, 0.01) == 1
    assert [margin_s(lease) for lease in (4, 20, 60)] == [1, 5, 5]


def test_nothing_may_run_before_the_first_heartbeat(make_lease: Callable[..., Lease]) -> None:
    lease = make_lease()
    assert lease.interruption() is Interruption.LEASE_LOST
    lease.take_up()
    assert lease.interruption() is None
    lease.stop()


def test_a_grant_that_is_gone_is_not_taken_up(
    make_lease: Callable[..., Lease], edge: FakeEdge
) -> None:
    edge.instead("/heartbeat", refusal(409, "job_ownership_mismatch"))
    with pytest.raises(LeaseLost):
        make_lease().take_up()
    assert len(edge.asked("/heartbeat")) == 1


def test_what_is_said_of_progress_does_not_wait_for_the_next_heartbeat(
    make_lease: Callable[..., Lease], edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[object]:
        return [one.body.get("progress") for one in edge.asked("/heartbeat")][1:]

    monkeypatch.setattr("remote_worker.lease.TELL_S", 0.0)
    lease = make_lease()
    lease.take_up()
    one, two, three = ({"message": word, "percent": None} for word in ("one", "two", "three"))
    lease.progress("one")
    until(lambda: told() == [one], what="it is told")
    lease.progress("one")  # is no news
    lease.progress("two")
    until(lambda: told() == [one, two], what="the next is told")
    # words gather, unless somebody wants a heartbeat now
    monkeypatch.setattr("remote_worker.lease.TELL_S", 3600.0)
    lease.progress("lost")
    lease.progress("three")
    lease.look()
    until(lambda: told() == [one, two, three], what="the last is told")
    lease.stop()


def test_taking_up_is_tried_again(
    make_lease: Callable[..., Lease], edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.lease._TAKE_UP_PAUSE_S", 0.01)
    edge.instead("/heartbeat", error_page(502), times=3)
    lease = make_lease()
    lease.take_up()
    assert len(edge.asked("/heartbeat")) == 4
    lease.stop()


def test_taking_up_is_given_up_before_the_hold_lapses(
    make_lease: Callable[..., Lease],
    edge: FakeEdge,
    time: Time,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remote_worker.lease._TAKE_UP_PAUSE_S", 0.01)
    edge.instead("/heartbeat", error_page(502), times=99)
    lease = make_lease()
    ends: list[str] = []

    def take_up() -> None:
        try:
            lease.take_up()
        except LeaseLost as error:
            ends.append(str(error))

    thread = threading.Thread(target=take_up)
    thread.start()
    until(lambda: len(edge.asked("/heartbeat")) >= 2)
    time.now += 20
    thread.join(5)
    assert ends == ["the grant could not be taken up"]
    assert lease.interruption() is Interruption.LEASE_LOST


def test_without_renewal_we_stop_before_the_edge_does(
    make_lease: Callable[..., Lease], time: Time
) -> None:
    lease = make_lease()
    lease.take_up()
    time.now += 54.9
    assert lease.interruption() is None
    time.now += 0.2
    assert lease.interruption() is Interruption.LEASE_LOST
    assert not lease.ended
    lease.stop()


def test_the_lease_counts_from_the_sending_not_from_the_answer(job: Job, time: Time) -> None:
    class Slow:
        def heartbeat(self, *_: object, **__: object) -> Beat:
            time.now += 30
            return Beat(cancel_requested=False, drain=False, expires_in_s=None)

    terms = Terms(lease_s=60, interval_s=3600, clock=time)
    lease = Lease(Slow(), job, terms=terms)  # type: ignore[arg-type]
    lease.take_up()
    time.now += 24
    assert lease.interruption() is None
    time.now += 2
    assert lease.interruption() is Interruption.LEASE_LOST
    lease.stop()


def test_an_edge_that_grants_less_is_believed(job: Job, time: Time) -> None:
    class Short:
        def heartbeat(self, *_: object, **__: object) -> Beat:
            return Beat(cancel_requested=False, drain=False, expires_in_s=8.0)

    lease = Lease(Short(), job, terms=Terms(lease_s=60, interval_s=3600, clock=time))  # type: ignore[arg-type]
    lease.take_up()
    time.now += 6.1
    assert lease.interruption() is Interruption.LEASE_LOST
    lease.stop()


def test_heartbeats_go_on_and_renew(
    make_lease: Callable[..., Lease], edge: FakeEdge, time: Time
) -> None:
    lease = make_lease(every_s=0.01)
    lease.take_up()
    lease.progress("half", 50.0)
    time.now += 50
    before = len(edge.asked("/heartbeat"))
    until(lambda: len(edge.asked("/heartbeat")) > before + 1)
    time.now += 50
    assert lease.interruption() is None
    lease.stop()
    assert edge.asked("/heartbeat")[-1].body["progress"] == {"message": "half", "percent": 50.0}


@pytest.mark.parametrize("answer", [error_page(200), error_page(409), refusal(503, "unavailable")])
def test_a_lost_heartbeat_changes_nothing_and_the_next_is_its_retry(
    make_lease: Callable[..., Lease], edge: FakeEdge, answer: object
) -> None:
    lease = make_lease(every_s=0.01)
    lease.take_up()
    edge.instead("/heartbeat", answer, times=3)  # type: ignore[arg-type]
    until(lambda: len(edge.asked("/heartbeat")) > 6)
    assert lease.interruption() is None
    lease.stop()


@pytest.mark.parametrize("status", [403, 404, 409])
def test_the_edges_no_ends_the_lease_for_good(
    make_lease: Callable[..., Lease], edge: FakeEdge, status: int
) -> None:
    lease = make_lease(every_s=0.01)
    lease.take_up()
    edge.instead("/heartbeat", refusal(status, "job_ownership_mismatch"))
    until(lambda: lease.ended)
    asked = len(edge.asked("/heartbeat"))
    assert lease.interruption() is Interruption.LEASE_LOST
    lease.stop()
    assert len(edge.asked("/heartbeat")) == asked


def test_a_refused_credential_stops_the_work_and_keeps_what_is_finished(
    make_lease: Callable[..., Lease], edge: FakeEdge
) -> None:
    lease = make_lease(every_s=0.01)
    lease.take_up()
    edge.instead("/heartbeat", refusal(401, "worker_auth_failed"), times=3)
    until(lambda: lease.interruption() is Interruption.LEASE_LOST)
    # not the edge's word on the lease: a report waits for a new key
    assert not lease.ended
    until(lambda: lease.interruption() is None)
    lease.stop()


def test_a_cancel_comes_with_the_heartbeat(
    make_lease: Callable[..., Lease], edge: FakeEdge, job: Job
) -> None:
    lease = make_lease(every_s=0.01)
    lease.take_up()
    edge.jobs[job.id].cancel = True
    until(lambda: lease.interruption() is Interruption.CANCELLED)
    lease.stop()


def test_a_drain_order_comes_with_the_heartbeat(
    make_lease: Callable[..., Lease], edge: FakeEdge
) -> None:
    drained = threading.Event()
    lease = make_lease(every_s=0.01, on_drain=drained.set)
    lease.take_up()
    edge.drain = True
    assert drained.wait(5)
    lease.stop()


def test_stop_may_come_twice_and_before_the_start(make_lease: Callable[..., Lease]) -> None:
    early = make_lease()
    early.stop()
    early.stop()
    lease = make_lease()
    lease.take_up()
    lease.stop()
    lease.stop()


def test_a_heartbeat_that_hangs_does_not_keep_a_lease_alive(job: Job, time: Time) -> None:
    hanging, release = threading.Event(), threading.Event()

    class Hanging:
        beats = 0

        def heartbeat(self, *_: object, **__: object) -> Beat:
            self.beats += 1
            if self.beats > 1:
                hanging.set()
                release.wait(10)
                raise Unanswered("too late")
            return Beat(cancel_requested=False, drain=False, expires_in_s=None)

    terms = Terms(lease_s=60, interval_s=0.01, clock=time)
    lease = Lease(Hanging(), job, terms=terms)  # type: ignore[arg-type]
    lease.take_up()
    assert hanging.wait(5)
    time.now += 56
    assert lease.interruption() is Interruption.LEASE_LOST
    release.set()
    lease.stop()


def test_a_fresh_heartbeat_confirms_and_an_old_one_asks_again(
    make_lease: Callable[..., Lease], edge: FakeEdge, time: Time
) -> None:
    lease = make_lease()
    assert not lease.confirm(max_age_s=10)
    lease.take_up()
    time.now += 9.9
    assert lease.confirm(max_age_s=10)
    assert len(edge.asked("/heartbeat")) == 1
    time.now += 0.1
    assert lease.confirm(max_age_s=10)
    assert len(edge.asked("/heartbeat")) == 2
    lease.stop()


@pytest.mark.parametrize(
    "answer,asked", [(error_page(502), 5), (refusal(409, "job_ownership_mismatch"), 1)]
)
def test_without_the_edges_word_nothing_is_confirmed(
    make_lease: Callable[..., Lease],
    edge: FakeEdge,
    time: Time,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    asked: int,
) -> None:
    monkeypatch.setattr("remote_worker.lease._CONFIRM_PAUSE_S", 0.01)
    lease = make_lease()
    lease.take_up()
    time.now += 10
    edge.instead("/heartbeat", answer, times=99)
    assert not lease.confirm(max_age_s=10)
    assert len(edge.asked("/heartbeat")) == 1 + asked
    lease.stop()
