"""What Celery is told of each row, seen from its backend and its broker, both in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, states
from celery.backends.cache import _DUMMY_CLIENT_CACHE
from kombu import Connection

from broker.bridge.settle import Settler, sent_id
from broker.records import Effect, Job
from tests.unit.bridge.conftest import NOW

OTHER = "5b0d5c58-9f6f-4e1b-8a0f-2f11a4c1d7aa"


class Heard:
    """An announcer that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def task(self, kind: str, node: str, fields: dict[str, Any], *, at: float) -> None:
        self.events.append((kind, node, fields, at))


class Told:
    """A settler over an app in memory."""

    def __init__(self) -> None:
        self.app = Celery("t", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(task_default_queue="default", result_extended=True)
        self.heard = Heard()
        self.settler = Settler(
            self.app, self.heard, node_of=lambda worker: f"{worker}@edge" if worker else "bridge@h"
        )

    def tell(self, job: Job, kind: str, data: dict[str, Any], **envelope: Any) -> None:
        effect = Effect(seq=1, job_id=job.id, kind=kind, data=data, tries=0, created_at=NOW)
        self.settler.settle(effect, job, envelope or None)

    def meta(self, task_id: str) -> dict[str, Any]:
        meta: dict[str, Any] = self.app.backend.get_task_meta(task_id)
        return meta

    def sent(self, queue: str) -> list[Any]:
        """Take what lies in a queue, oldest first."""
        with Connection("memory://") as connection:
            simple, found = connection.SimpleQueue(queue), []
            for _ in range(simple.qsize()):
                found.append(simple.get(block=False))
                found[-1].ack()
            simple.close()
        return found


@pytest.fixture
def told() -> Iterator[Told]:
    _DUMMY_CLIENT_CACHE.clear()  # it is one for the whole process
    made = Told()
    yield made
    for queue in ("default", "next"):
        made.sent(queue)
    made.app.close()


def link(task: str = "next.step", **options: Any) -> dict[str, Any]:
    return {
        "task": task, "args": [], "kwargs": {}, "options": {"queue": "next", **options},
        "subtask_type": None, "immutable": False,
    }  # fmt: skip


SUCCESS = {"state": "SUCCESS", "worker": "w", "retries": 0}


def test_a_success_is_stored_with_the_remote_node(told: Told, make_job: Callable[..., Job]):
    told.tell(
        make_job(result={"ok": 1}), "store", {**SUCCESS, "retries": 2}, headers={"group": "g"}
    )
    meta = told.meta(make_job().id)
    assert (meta["status"], meta["result"], meta["worker"]) == ("SUCCESS", {"ok": 1}, "w@edge")
    assert (meta["name"], meta["retries"], meta["group_id"]) == ("codex_exec", 2, "g")


def test_a_job_made_over_http_has_a_result_like_any_other(told: Told, make_job: Callable[..., Job]):
    told.tell(make_job(result_summary="done"), "store", SUCCESS)
    assert told.meta(make_job().id)["result"] == "done"


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord", "stamps", "_children"])
def test_a_stranger_among_the_headers_keeps_no_result_back(
    told: Told, make_job: Callable[..., Job], name: str
):
    job = make_job(result=1)
    told.tell(job, "store", SUCCESS, headers={name: ["odd"]})
    assert told.meta(job.id)["status"] == states.SUCCESS


@pytest.mark.parametrize("value", [False, 0, "", [], {}])
def test_a_false_result_is_a_result(told: Told, make_job: Callable[..., Job], value: Any):
    told.tell(make_job(result=value, result_summary="no"), "store", SUCCESS)
    assert told.meta(make_job().id)["result"] == value


def test_what_nobody_wants_is_not_stored(told: Told, make_job: Callable[..., Job]):
    for kind, data in (("state", {"state": "STARTED", "worker": "w"}), ("store", SUCCESS)):
        told.tell(make_job(), kind, data, headers={"ignore_result": True})
    assert told.meta(make_job().id)["status"] == states.PENDING


def test_the_registered_task_says_whether_results_are_wanted(
    told: Told, make_job: Callable[..., Job]
):
    def codex_exec() -> None:
        raise AssertionError

    told.app.task(codex_exec, name="codex_exec", ignore_result=True, shared=False)
    told.tell(make_job(), "store", SUCCESS, headers={"ignore_result": None})
    assert told.meta(make_job().id)["status"] == states.PENDING
    told.tell(make_job(), "store", SUCCESS, headers={"ignore_result": False})
    assert told.meta(make_job().id)["status"] == states.SUCCESS


def test_errors_of_what_nobody_wants_are_stored_where_the_class_of_tasks_says_so(
    told: Told, make_job: Callable[..., Job]
):
    """Failures, retries and revokes alike, as an ordinary worker has it."""
    told.app.conf.task_store_errors_even_if_ignored = True
    error = {"type": "ValueError", "message": "no"}
    ignored = {"headers": {"ignore_result": True}}
    told.tell(make_job(), "state", {"state": "STARTED", "worker": "w"}, **ignored)
    told.tell(make_job(), "store", SUCCESS, **ignored)
    assert told.meta(make_job().id)["status"] == states.PENDING
    for kind, state in (("state", "RETRY"), ("store", "REVOKED"), ("store", "FAILURE")):
        told.tell(make_job(), kind, {"state": state, "worker": "w", "error": error}, **ignored)
        assert told.meta(make_job().id)["status"] == state


def test_failure_retry_and_revocation(told: Told, make_job: Callable[..., Job]):
    error = {"type": "ValueError", "message": "no", "traceback": "tb"}
    told.tell(make_job(), "state", {"state": "RETRY", "worker": "w", "error": error})
    assert told.meta(make_job().id)["status"] == states.RETRY
    told.tell(make_job(), "store", {"state": "FAILURE", "worker": None, "error": error})
    meta = told.meta(make_job().id)
    assert (meta["status"], meta["traceback"], meta["worker"]) == ("FAILURE", "tb", "bridge@h")
    assert isinstance(meta["result"], ValueError)
    told.tell(make_job(task_id=OTHER), "store", {"state": "REVOKED", "reason": "expired"})
    assert told.meta(OTHER)["status"] == states.REVOKED


def test_a_link_gets_the_result_and_an_id_that_a_repeat_has_too(
    told: Told, make_job: Callable[..., Job]
):
    envelope = {"headers": {"root_id": OTHER}, "embed": {"callbacks": [link(), link()]}}
    job = make_job(result=7)
    for _ in range(2):
        told.tell(job, "link", {"index": 1}, **envelope)
    first, again = told.sent("next")
    assert first.headers["id"] == again.headers["id"] == sent_id(job, "link", 1)
    assert (first.headers["parent_id"], first.headers["root_id"]) == (job.id, OTHER)
    assert first.payload[0] == [7]
    told.tell(job, "store", SUCCESS, **envelope)
    ((_, links),) = told.meta(job.id)["children"]  # several links are one group, as Celery has it
    assert [child[0][0] for child in links] == [sent_id(job, "link", 0), sent_id(job, "link", 1)]


def test_another_run_has_other_ids(make_job: Callable[..., Job]):
    assert sent_id(make_job(run=1), "link", 0) != sent_id(make_job(run=2), "link", 0)
    assert sent_id(make_job(), "link", 0) != sent_id(make_job(), "errback", 0)


def test_the_chain_goes_on_with_its_rest(told: Told, make_job: Callable[..., Job]):
    last, following = link("next.last", task_id="l"), link("next.following", task_id=OTHER)
    told.tell(make_job(result="r"), "chain", {}, embed={"chain": [last, following]})
    (message,) = told.sent("next")
    assert (message.headers["task"], message.headers["id"]) == ("next.following", OTHER)
    args, _, embed = message.payload
    assert args == ["r"]
    assert [one["options"]["task_id"] for one in embed["chain"]] == ["l"]


def test_a_failure_marks_the_rest_of_the_chain(told: Told, make_job: Callable[..., Job]):
    chain = [link("next.last", task_id=OTHER)]
    data = {"failed": True, "error": {"type": "KeyError", "message": "k"}}
    told.tell(make_job(), "chain", data, embed={"chain": chain})
    assert told.meta(OTHER)["status"] == states.FAILURE
    assert told.sent("next") == []


def test_an_errback_of_another_worker_gets_the_id(told: Told, make_job: Callable[..., Job]):
    job = make_job()
    for _ in range(2):
        told.tell(job, "errback", {"index": 0, "error": {}}, embed={"errbacks": [link()]})
    first, again = told.sent("next")
    assert first.headers["id"] == again.headers["id"] == sent_id(job, "errback", 0)
    assert first.payload[0] == [job.id]


def test_an_errback_of_ours_is_called_with_the_exception(told: Told, make_job: Callable[..., Job]):
    calls: list[tuple[Any, ...]] = []

    def errback(request: Any, exc: Exception, traceback: str) -> None:
        calls.append((request.id, request.hostname, exc, traceback))

    told.app.task(errback, name="next.step", shared=False)
    error = {"type": "ValueError", "message": "no", "traceback": "tb"}
    told.tell(make_job(), "errback", {"index": 0, "error": error}, embed={"errbacks": [link()]})
    ((task_id, node, exc, traceback),) = calls
    assert (task_id, node, traceback) == (make_job().id, "bridge@h", "tb")
    assert isinstance(exc, ValueError)


def test_events_wait_for_the_flush_under_the_node_of_the_worker(
    told: Told, make_job: Callable[..., Job]
):
    data = {"type": "task-started", "worker": "w", "fields": {}, "at": 12.5}
    told.tell(make_job(), "event", data)
    told.tell(make_job(), "event", {**data, "type": "task-failed", "worker": None})
    assert told.heard.events == [
        ("task-started", "w@edge", {"uuid": make_job().id}, 12.5),
        ("task-failed", "bridge@h", {"uuid": make_job().id}, 12.5),
    ]


def test_priority_is_inherited_only_when_the_app_says_so(told: Told, make_job: Callable[..., Job]):
    envelope = {"properties": {"priority": 6}, "embed": {"callbacks": [link()]}}
    told.tell(make_job(), "link", {"index": 0}, **envelope)
    told.app.conf.task_inherit_parent_priority = True
    told.tell(make_job(), "link", {"index": 0}, **envelope)
    assert [m.properties.get("priority", 0) for m in told.sent("next")] == [0, 6]
