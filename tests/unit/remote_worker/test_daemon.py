"""The daemon's states, slots and exit codes."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from remote_worker import claiming
from remote_worker import daemon as module
from remote_worker.client import Client
from remote_worker.daemon import EXIT_ERROR, EXIT_OK, EXIT_REFUSED, EXIT_UNREPORTED, Daemon
from remote_worker.errors import Interrupted, Interruption
from remote_worker.handlers.context import Context, Handler, Outcome
from remote_worker.job import Welcome
from remote_worker.redact import Redactor
from remote_worker.settings import Settings
from remote_worker.slots import State
from remote_worker.spool import Spool
from tests.processes import until
from tests.unit.remote_worker.edge import FakeEdge, Held, error_page, refusal

Make = Callable[..., Daemon]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give the signals back to pytest."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def done(_context: Context) -> Outcome:
    return Outcome(summary="done", result={})


@pytest.fixture
def make(client: Client, make_settings: Callable[..., Settings]) -> Iterator[Make]:
    spools: list[Spool] = []

    def call(
        handlers: Mapping[str, Handler] | None = None,
        welcome: Welcome | None = None,
        **more: object,
    ) -> Daemon:
        settings = make_settings(types=("echo",), **more)
        settings.work_dir.mkdir(exist_ok=True)
        for earlier in spools:
            earlier.close()
        spools.append(Spool(settings.work_dir))
        spools[-1].open()
        return Daemon(
            settings,
            client=client,
            spool=spools[-1],
            handlers=handlers or {"echo": done},
            make_redactor=Redactor,
            welcome=welcome or Welcome(),
        )

    yield call
    for spool in spools:
        spool.close()


class Gate:
    """A handler that waits to be let go on, and obeys interruptions."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.most = self.now = 0
        self._lock = threading.Lock()

    def __call__(self, context: Context) -> Outcome:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.inside.release()
        try:
            until(lambda: self.open.is_set() or context.interrupt())
        finally:
            with self._lock:
                self.now -= 1
        why = context.interrupt()
        if why is not None:
            raise Interrupted(why)
        return Outcome(summary="done", result={})


def behind(action: Callable[[], None]) -> None:
    """Do something while the daemon runs in the main thread."""
    threading.Thread(target=action, daemon=True).start()


def entered(gate: Gate, times: int = 1) -> None:
    assert all(gate.inside.acquire(timeout=10) for _ in range(times))


def test_jobs_are_run_until_there_were_enough(make: Make, edge: FakeEdge) -> None:
    held = [edge.offer("echo") for _ in range(3)]
    assert make(max_jobs=2).run() == EXIT_OK
    assert [job.ended for job in held] == ["complete", "complete", None]


def test_the_first_call_after_a_claim_is_a_heartbeat(make: Make, edge: FakeEdge) -> None:
    edge.offer("echo")
    make(max_jobs=1).run()
    # it says goodbye to further claims at any time from then on
    verbs = [call.path.rpartition("/")[2] for call in edge.calls if "/jobs/" in call.path]
    assert verbs[:2] == ["claim", "heartbeat"]


def test_the_last_call_is_a_goodbye(make: Make, edge: FakeEdge) -> None:
    edge.offer("echo")
    assert make(max_jobs=1).run() == EXIT_OK
    assert edge.calls[-1].path.endswith("/workers/bye")
    # what ran on after the first goodbye is over by then
    ended = [at for at, call in enumerate(edge.calls) if call.path.endswith("/complete")]
    assert ended[-1] < len(edge.calls) - 1


def test_nothing_to_do_for_long_enough_is_an_end(make: Make, edge: FakeEdge) -> None:
    assert make(idle_exit_s=0.2).run() == EXIT_OK
    assert all(call.body["waitSeconds"] <= 1 for call in edge.asked("/claim"))


def test_slots_are_filled_and_never_overfilled(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    held = [edge.offer("echo") for _ in range(5)]

    def let_go() -> None:
        entered(gate, 2)
        gate.open.set()

    behind(let_go)
    assert make({"echo": gate}, concurrency=2, max_jobs=5).run() == EXIT_OK
    assert gate.most == 2
    assert all(job.ended == "complete" for job in held)
    assert max(call.body["maxJobs"] for call in edge.asked("/claim")) == 2


def test_the_edge_may_ask_for_shorter_waits(make: Make, edge: FakeEdge) -> None:
    edge.offer("echo")
    make(welcome=Welcome(wait_s=0), wait_s=20, max_jobs=1).run()
    assert edge.asked("/claim")[0].body["waitSeconds"] == 0


def test_an_edge_that_answers_nothing_at_once_is_not_asked_in_a_loop(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_MIN_CLAIM_S", 0.2)
    make(wait_s=0, idle_exit_s=0.7).run()
    assert 2 <= len(edge.asked("/claim")) <= 8


def test_the_first_signal_finishes_what_runs_and_claims_nothing(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    first, second = edge.offer("echo"), edge.offer("echo")
    daemon = make({"echo": gate})

    def drain() -> None:
        entered(gate)
        signal.raise_signal(signal.SIGTERM)
        until(lambda: daemon.slots.state is State.QUIET)
        gate.open.set()

    behind(drain)
    assert daemon.run() == EXIT_OK
    assert (first.ended, second.ended) == ("complete", None)


def test_the_second_signal_gives_back_what_runs(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    held = edge.offer("echo")

    def stop() -> None:
        entered(gate)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    behind(stop)
    assert make({"echo": gate}).run() == EXIT_OK
    assert held.ended == "release"
    last = [call.path.rpartition("/")[2] for call in edge.calls]
    assert "heartbeat" in last


def test_a_drain_order_of_the_edge_is_obeyed(make: Make, edge: FakeEdge) -> None:
    edge.drain = True
    first, second = edge.offer("echo"), edge.offer("echo")
    assert make().run() == EXIT_OK
    assert (first.ended, second.ended) == ("complete", None)


def test_what_is_granted_too_late_is_given_back(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLAIM_GRACE_S", 10.0)
    held: list[Held] = []

    def signal_then_offer() -> None:
        until(lambda: edge.asked("/claim"))
        signal.raise_signal(signal.SIGTERM)
        until(lambda: daemon.slots.state is State.QUIET)
        held.append(edge.offer("echo"))

    daemon = make(wait_s=5)
    behind(signal_then_offer)
    assert daemon.run() == EXIT_OK
    assert held[0].ended == "release"
    assert edge.asked("/heartbeat") == []


def test_a_claim_in_flight_does_not_hold_up_the_end(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLAIM_GRACE_S", 0.1)

    def stop() -> None:
        until(lambda: edge.asked("/claim"))
        signal.raise_signal(signal.SIGTERM)

    behind(stop)
    assert make(wait_s=5).run() == EXIT_OK


@pytest.mark.parametrize(
    "status,code", [(401, "worker_auth_failed"), (403, "worker_not_authorized"), (422, "x")]
)
def test_an_edge_that_refuses_the_worker_ends_it(
    make: Make, edge: FakeEdge, status: int, code: str
) -> None:
    edge.instead("/claim", refusal(status, code))
    assert make().run() == EXIT_REFUSED
    assert len(edge.asked("/claim")) == 1


def test_a_refusal_lets_what_runs_finish(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    held = edge.offer("echo")

    def refuse() -> None:
        entered(gate)
        edge.instead("/claim", refusal(401, "worker_auth_failed"))
        edge.offer("echo")
        gate.open.set()

    behind(refuse)
    assert make({"echo": gate}, concurrency=2, wait_s=0).run() == EXIT_REFUSED
    assert held.ended == "complete"


def test_a_deaf_edge_is_asked_until_it_answers(make: Make, edge: FakeEdge) -> None:
    edge.instead("/claim", error_page(502), times=5)
    held = edge.offer("echo")
    assert make(max_jobs=1).run() == EXIT_OK
    assert held.ended == "complete"
    assert len({call.headers["Idempotency-Key"] for call in edge.asked("/claim")}) == 1


def test_what_could_not_be_said_in_its_time_is_said_later(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.report.DELIVER_FOR_S", 0.0)
    monkeypatch.setattr("remote_worker.leftovers._AGAIN_S", 0.05)
    edge.instead("/complete", error_page(503), times=3)
    held = edge.offer("echo")

    def end() -> None:
        until(lambda: held.ended)
        signal.raise_signal(signal.SIGTERM)

    behind(end)
    daemon = make()
    assert daemon.run() == EXIT_OK
    assert held.ended == "complete"
    assert daemon.endings == {"complete": 1}


def test_before_the_end_it_is_said_once_more(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.report.DELIVER_FOR_S", 0.0)
    edge.instead("/complete", error_page(503))
    held = edge.offer("echo")
    assert make(max_jobs=1).run() == EXIT_OK
    assert held.ended == "complete"


def test_what_is_still_unsaid_at_the_end_is_an_exit_code(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.report.DELIVER_FOR_S", 0.0)
    edge.instead("/complete", error_page(503), times=9)
    held = edge.offer("echo")
    assert make(max_jobs=1).run() == EXIT_UNREPORTED
    assert held.ended is None
    # the next one says it, before it is idle for long enough to end
    edge.forgive()
    assert make(idle_exit_s=0.0).run() == EXIT_OK
    assert held.ended == "complete"


def test_a_bug_in_the_claim_loop_ends_the_daemon_with_an_error(
    make: Make, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make()
    monkeypatch.setattr(daemon.claiming, "_claim", lambda _free: 1 // 0)
    assert daemon.run() == EXIT_ERROR


def test_an_edge_that_grants_too_much_gets_the_rest_back(make: Make, edge: FakeEdge) -> None:
    import json  # noqa: PLC0415

    from tests.unit.remote_worker.edge import Answer  # noqa: PLC0415

    held = [edge.offer("echo") for _ in range(3)]
    edge.waiting.clear()
    jobs = [one.job for one in held]
    edge.instead("/claim", Answer(body=json.dumps({"job": jobs[0], "jobs": jobs}).encode()))
    gate = Gate()

    def let_go() -> None:
        until(lambda: len(edge.asked("/release")) == 2)
        gate.open.set()

    behind(let_go)
    assert make({"echo": gate}, max_jobs=1).run() == EXIT_OK
    assert sorted(str(one.ended) for one in held) == ["complete", "release", "release"]


ORDERS = Welcome(features=frozenset({"control"}))
DRAIN = {"kind": "drain", "jobId": None, "n": None}
RESUME = {"kind": "resume", "jobId": None, "n": None}


def slots(n: int | None) -> dict[str, object]:
    return {"kind": "concurrency", "jobId": None, "n": n}


def test_a_cancel_by_order_reaches_the_handler_without_a_heartbeat(
    make: Make, edge: FakeEdge
) -> None:
    gate = Gate()
    held = edge.offer("echo")

    def cancel() -> None:
        entered(gate)
        edge.order(RESUME, {"kind": "cancel", "jobId": held.job["id"], "n": None})

    behind(cancel)
    # a lease of an hour: no heartbeat will say it in time
    assert make({"echo": gate}, ORDERS, max_jobs=1, lease_s=3600).run() == EXIT_OK
    assert held.ended == "cancel/ack"


def test_a_held_daemon_claims_nothing_lives_on_and_goes_on_when_let(
    make: Make, edge: FakeEdge
) -> None:
    edge.order(DRAIN)
    daemon = make(welcome=ORDERS, max_jobs=1)
    held: list[Held] = []

    def resume() -> None:
        until(lambda: daemon.slots.held)
        held.append(edge.offer("echo"))
        asked = len(edge.asked("/claim"))
        # the look for orders goes on, and no claim with it
        calls = len(edge.calls)
        until(lambda: len(edge.calls) > calls + 1)
        assert len(edge.asked("/claim")) <= asked + 1
        edge.order(RESUME)

    behind(resume)
    assert daemon.run() == EXIT_OK
    assert held[0].ended == "complete"


def test_slots_by_order_are_fewer_and_never_more_than_the_owners(
    make: Make, edge: FakeEdge
) -> None:
    edge.order(RESUME, slots(1))
    gate = Gate()
    daemon = make({"echo": gate}, ORDERS, concurrency=2, max_jobs=4)

    def steer() -> None:
        until(lambda: daemon.slots.limit == 1)
        for _ in range(4):
            edge.offer("echo")
        entered(gate)
        edge.order(RESUME, slots(50))
        until(lambda: daemon.slots.limit == 2)
        entered(gate)
        gate.open.set()

    behind(steer)
    assert daemon.run() == EXIT_OK
    assert gate.most == 2


def test_an_edge_without_orders_is_left_in_peace(make: Make, edge: FakeEdge) -> None:
    edge.instead("/workers/control?", refusal(404, "not_found"))
    edge.offer("echo")
    assert make(max_jobs=1).run() == EXIT_OK
    assert not [call for call in edge.calls if "control" in call.path]


def test_drained_for_too_long_gives_back_what_runs(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    held = edge.offer("echo")

    def drain() -> None:
        entered(gate)
        signal.raise_signal(signal.SIGTERM)

    behind(drain)
    assert make({"echo": gate}, drain_timeout_s=0.2).run() == EXIT_OK
    assert held.ended == "release"


def test_what_a_handler_leaves_reaches_the_next_holder(make: Make, edge: FakeEdge) -> None:
    inside = threading.Event()

    def leave(context: Context) -> Outcome:
        context.lease.checkpoint = {"step": 3, "before": context.job.checkpoint}
        inside.set()
        until(context.interrupt)
        raise Interrupted(context.interrupt() or Interruption.STOPPING)

    def stop() -> None:
        assert inside.wait(10)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    held = edge.offer("echo")
    held.job["checkpoint"] = "from before"
    behind(stop)
    assert make({"echo": leave}).run() == EXIT_OK
    assert held.ended == "release"
    assert held.report["checkpoint"] == {"step": 3, "before": "from before"}


def test_a_worker_that_is_locked_out_stops_its_children(make: Make, edge: FakeEdge) -> None:
    gate = Gate()
    held = edge.offer("echo")

    def revoke() -> None:
        entered(gate)
        edge.instead("/heartbeat", refusal(401, "worker_auth_failed"), times=1000)
        edge.instead("/claim", refusal(401, "worker_auth_failed"), times=1000)

    behind(revoke)
    assert make({"echo": gate}, lease_s=3).run() == EXIT_REFUSED
    assert held.ended is None
    assert gate.now == 0
