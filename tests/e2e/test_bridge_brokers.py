"""Brokers and apps as others run them: a locked Redis behind TLS, strangers, a package."""

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import tls
from tests.e2e.bridges import QUEUE, ROOT, World, world_of
from tests.processes import Process
from tests.services import Valkey, free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60
#: of the kind that has to be quoted in a URL
PASSWORD, QUOTED = "p w/@:#", "p%20w%2F%40%3A%23"


class Locked(Valkey):
    """A Valkey that wants a password, and is reached through TLS."""

    def __init__(self) -> None:
        super().__init__("--requirepass", PASSWORD)
        self.front = ""

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD, decode_responses=True)

    @property
    def url(self) -> str:
        return f"{self.front}&ssl_cert_reqs=required"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    made, pem = Locked().start(), tls.certificate(tmp_path / "redis.pem")
    with tls.Front(made.port, pem) as front:
        made.front = f"rediss://:{QUOTED}@127.0.0.1:{front.port}/0?ssl_ca_certs={pem}"
        yield made
    made.remove()


def test_a_redis_with_a_password_over_tls(
    locked: Locked, tmp_path: Path, process: Callable[..., Process]
):
    """Broker, results and reservations; and of two queues each task goes its way."""
    with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        redis.Redis.from_url(locked.front.partition("?")[0]).ping()
    backend = locked.url.replace("/0?", "/1?")
    world = World(locked, locked, tmp_path, process, backend=backend)
    try:
        world.bridge("--queue", QUEUE, "--queue", "second")
        first = world.send(kwargs={"n": 1})
        second = world.app.send_task("codex_exec", kwargs={"n": 2}, queue="second")
        jobs = {job.task_id: job for job in (world.claim(), world.claim())}
        for sent, queue in ((first, QUEUE), (second, "second")):
            job = jobs[sent.id]
            assert job.queue == queue
            world.complete(job, job.payload["n"])
            assert sent.get(timeout=GET_S) == job.payload["n"]
    finally:
        world.close()


@pytest.fixture
def world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    with world_of(start_valkey, tmp_path, process) as made:
        yield made


def test_an_ordinary_worker_on_a_bridged_queue_does_not_stay_unseen(world: World):
    before = world.doctor()["ordinary workers"]
    assert before["status"] == "ok"
    world.local_worker(queues=f"local,{QUEUE}")
    seen = until(
        lambda: (one := world.doctor()["ordinary workers"])["status"] == "problem" and one,
        GET_S, "doctor finds it",
    )  # fmt: skip
    assert f"local@here ({QUEUE})" in seen["message"]
    # asked once a minute: a busy machine may miss the first answer
    said = f"ordinary worker local@here consumes the bridged queue {QUEUE}"
    port = free_port()
    world.bridge("--metrics-port", str(port)).wait_for(said, timeout=150)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=GET_S) as answer:
        assert f'drawbridge_ordinary_workers{{queue="{QUEUE}"}} 1.0' in answer.read().decode()


PACKAGE = {
    "__init__": "",
    "celery": """
from celery import Celery
app = Celery("proj", task_cls="proj.base:Base")
app.config_from_object("proj.config")
""",
    "config": """
import os
broker_url, result_backend = os.environ["APP_BROKER"], os.environ["APP_BACKEND"]
imports = ("proj.errbacks",)
task_routes = {"proj.later": {"queue": "elsewhere"}}
""",
    "base": """
from celery import Task
class Base(Task):
    store_errors_even_if_ignored = True
""",
    "errors": """
class Torn(Exception):
    @property
    def page(self):
        return self.args[0].split()[-1]
""",
    "errbacks": """
import pathlib
from proj import errors
from proj.celery import app
@app.task(name="proj.note")
def note(request, error, traceback, file):
    draft = pathlib.Path(file + ".draft")
    assert isinstance(error, errors.Torn)
    draft.write_text(f"{error.page} {request.task}")
    draft.rename(file)
""",
}


def test_what_lies_in_a_packages_own_modules_is_used(world: World, tmp_path: Path):
    """Its routes, its error callbacks, its exceptions and its class of tasks."""
    package = tmp_path / "proj"
    package.mkdir()
    for name, text in PACKAGE.items():
        (package / f"{name}.py").write_text(text)
    world.bridge("-A", "proj.celery", environ=world.own_app | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    app, noted = world.app, tmp_path / "noted"
    note: Any = app.signature("proj.note", kwargs={"file": str(noted)})

    sent = app.signature("tear", queue=QUEUE).apply_async(link_error=note, ignore_result=True)
    torn = {"error_type": "proj.errors.Torn", "traceback": "Traceback: paper"}
    world.fail(world.claim(), "page 7", **torn)
    until(noted.exists, GET_S, "the callback was called")
    assert noted.read_text() == "7 tear"
    # its class of tasks stores errors even of what nobody waits for
    until(lambda: sent.state == "FAILURE", GET_S, "FAILURE")
    assert type(sent.info).__name__ == "Torn"

    later = app.signature("proj.later", kwargs={"x": 1})
    app.signature("tear", queue=QUEUE).apply_async(link=later)
    world.complete(world.claim(), "done")
    with world.raw() as client:
        until(lambda: client.llen("elsewhere"), GET_S, "the link went where its routes say")
