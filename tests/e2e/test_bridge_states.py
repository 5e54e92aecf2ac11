"""The states of a task as an orchestrator reads them, on each kind of result backend."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import states
from celery.backends.rpc import RPCBackend
from kombu import pools

from broker.records import Job
from tests.e2e.bridges import World, holder
from tests.processes import Process
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60


class OutOfPaper(Exception):
    """An exception that the orchestrator has, and the bridge has not."""


@pytest.fixture(scope="module", params=["redis", "rpc", "sql"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Give a world with a bridge and one kind of result backend."""
    folder = tmp_path_factory.mktemp("world")
    backends = {"redis": None, "rpc": "rpc://", "sql": f"db+sqlite:///{folder / 'results'}"}
    with ExitStack() as stack:
        valkeys = [Valkey().start() for _ in range(2)]
        for one in valkeys:
            stack.callback(one.remove)

        def process(argv: Any, *, env: Any = None, cwd: Path | None = None) -> Process:
            started = Process(argv, log=folder / "bridge.log", env=env, cwd=cwd)
            stack.callback(started.close)
            return started

        made = World(*valkeys, folder, process, backend=backends[request.param])
        stack.callback(pools.reset)
        stack.callback(made.close)
        if request.param == "rpc":
            stack.callback(made.app.backend.result_consumer.stop)
        made.bridge()
        yield made


class Watched:
    """A task as its orchestrator sees it, from one state to the next."""

    def __init__(self, sent: Any) -> None:
        self.sent = sent
        self._heard: list[dict[str, Any]] = []
        self._thread: threading.Thread | None = None
        if isinstance(sent.backend, RPCBackend):
            # messages to whoever sent: there is nothing to look at, one has to listen
            said = {"timeout": 3 * GET_S, "propagate": False, "on_message": self._heard.append}
            self._thread = threading.Thread(target=sent.get, kwargs=said, daemon=True)
            self._thread.start()

    def meta(self, state: str) -> dict[str, Any]:
        """Wait for a state, and return what was stored with it."""
        return until(lambda: self._find(state), GET_S, state)

    def end(self) -> Any:
        """Return the result, or raise what failed it."""
        if self._thread is not None:
            self._thread.join(GET_S)
        return self.sent.get(timeout=GET_S)

    def _find(self, state: str) -> dict[str, Any] | None:
        if self._thread is None:
            meta: dict[str, Any] = self.sent.backend.get_task_meta(self.sent.id)
            return meta if meta["status"] == state else None
        heard = [meta for meta in self._heard if meta["status"] == state]
        return heard[-1] if heard else None


def sent_and_claimed(world: World) -> tuple[Watched, Job]:
    sent = world.send()
    watched = Watched(sent)
    job = world.claim()
    assert job.task_id == sent.id
    return watched, job


def say(world: World, job: Job, **progress: Any) -> None:
    world.queue.heartbeat(job.id, holder(job), lease_seconds=60, progress=progress)


def test_what_a_worker_says_of_its_progress_is_its_tasks_state(world: World):
    sent, job = sent_and_claimed(world)
    started = sent.meta(states.STARTED)["result"]
    assert started == {"pid": None, "hostname": "worker-1@edge"}
    say(world, job, message="cloning", percent=25.0)
    assert sent.meta("PROGRESS")["result"] == {"message": "cloning", "percent": 25.0}
    say(world, job, message="at it", percent=None, state="PRINTING", meta={"pages": [1, 2]})
    info = {"message": "at it", "percent": None, "pages": [1, 2]}
    assert sent.meta("PRINTING")["result"] == info
    say(world, job, message="the last word", percent=99.0)
    world.complete(job, "printed")
    assert sent.end() == "printed"
    # whatever the ledger wrote before this has been told by then
    after, job = sent_and_claimed(world)
    world.complete(job, "after")
    assert after.end() == "after"
    assert sent.meta(states.SUCCESS)["result"] == "printed"


def test_a_retry_shows_its_exception_and_a_failure_is_raised_as_the_class_it_is(world: World):
    sent, job = sent_and_claimed(world)
    said = {"error_type": f"{__name__}.OutOfPaper", "traceback": "Traceback: tray 1"}
    world.fail(job, "tray 1", retryable=True, retry_after_s=0.0, **said)
    meta = sent.meta(states.RETRY)
    assert "tray 1" in str(meta["result"])
    assert meta["traceback"] == "Traceback: tray 1"
    world.fail(world.claim(), "tray 2", **(said | {"traceback": "Traceback: tray 2"}))
    with pytest.raises(OutOfPaper, match="tray 2"):
        sent.end()
    assert sent.meta(states.FAILURE)["traceback"] == "Traceback: tray 2"


def test_a_class_that_nobody_has_is_made_up_with_its_name(world: World):
    sent, job = sent_and_claimed(world)
    world.fail(job, "no such file", error_type="far.away.NoSuchFile", traceback="Traceback: far")
    with pytest.raises(Exception, match="no such file") as raised:
        sent.end()
    assert type(raised.value).__name__ == "NoSuchFile"
    assert type(raised.value).__module__ == "celery.exceptions"
    assert sent.meta(states.FAILURE)["traceback"] == "Traceback: far"
