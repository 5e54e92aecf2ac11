"""Remote workers in ops' own tools: Flower, the celery command, two bridges with one voice."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.bridges import QUEUE, ROOT, World, world_of
from tests.processes import Process
from tests.services import Valkey, free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
GET_S = 60
NODE = "worker-1@edge"


@pytest.fixture
def world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    with world_of(start_valkey, tmp_path, process) as made:
        yield made


def said(world: World) -> set[str]:
    """Ask who is there; who is slow to answer is asked again."""
    return set(world.app.control.inspect(timeout=1).ping() or {})


def celery(world: World, *arguments: str) -> str:
    argv = [sys.executable, "-m", "celery", "-b", world.broker_url, *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=100).stdout


def test_flower_shows_the_worker_its_page_and_its_task(
    world: World, process: Callable[..., Process]
):
    port = free_port()
    process(
        [sys.executable, "-m", "celery", "flower", "--address=127.0.0.1", f"--port={port}"],
        env={
            "CELERY_BROKER_URL": world.broker_url,
            "CELERY_RESULT_BACKEND": world.backend_url,
            "FLOWER_UNAUTHENTICATED_API": "true",
        },
        cwd=world.folder,
    )
    world.bridge()
    world.queue.hello("worker-1", {"version": "0.1", "concurrency": 2, "types": ["codex_exec"]})
    flower = f"http://127.0.0.1:{port}"

    def get(path: str) -> Any:
        try:
            return requests.get(flower + path, timeout=10)
        except requests.ConnectionError:
            return None

    def online() -> bool:
        answer = get("/workers?json=1")
        rows = answer.json()["data"] if answer is not None and answer.ok else []
        return any(row["hostname"] == NODE and row["status"] for row in rows)

    until(online, 40, "Flower lists the worker as online")
    page = until(lambda: (p := get(f"/worker/{NODE}")) and p.ok and p, GET_S, "its page")
    assert QUEUE in page.text
    assert "codex_exec" in page.text
    sent = world.send()
    world.complete(world.claim(), "x")
    sent.get(timeout=GET_S)

    def succeeded() -> Any:
        answer = get(f"/api/task/info/{sent.id}")
        found = answer.json() if answer is not None and answer.ok else {}
        return found if found.get("state") == "SUCCESS" else None

    task = until(succeeded, GET_S, "its task")
    assert (task["worker"], task["name"]) == (NODE, "codex_exec")
    held = world.send(countdown=3600)
    until(lambda: world.catalog.find(held.id), GET_S, "the job")
    assert requests.post(f"{flower}/api/task/revoke/{held.id}", timeout=10).ok
    until(lambda: held.state == "REVOKED", GET_S, "Flower's revoke")
    # an ordinary worker that stops is offline at once, and not after a minute of silence
    world.queue.bye("worker-1", "whichever")
    until(lambda: not online(), GET_S, "a worker that said goodbye is offline")


def test_two_bridges_speak_with_one_voice_and_one_of_them_goes_on(world: World):
    first, second = world.bridge(name="one"), world.bridge(name="two")
    world.queue.seen("worker-1")
    owner = until(
        lambda: next((b for b in (first, second) if f"node {NODE} is online" in b.output()), None),
        GET_S,
        "a bridge speaks for it",
    )
    for _ in range(3):  # a second voice would be a DuplicateNodenameWarning, an error here
        until(lambda: said(world) == {NODE, "one@here", "two@here"}, GET_S, "each says it is there")
    other = second if owner is first else first
    owner.kill()
    world.queue.seen("worker-1")
    other.wait_for(f"node {NODE} is online")
    until(lambda: NODE in said(world), GET_S, "the node")


def test_the_celery_command_knows_the_node(world: World):
    world.bridge()
    world.queue.seen("worker-1")
    until(lambda: NODE in said(world), GET_S, "the node")
    status = celery(world, "status", "-t", "3")
    assert NODE in status
    assert "2 nodes online" in status
    for question in ("active", "stats", "active_queues"):
        # answers as soon as the one node has
        assert NODE in celery(world, "inspect", question, "-d", NODE, "-t", "60"), question


def test_a_broker_of_another_kind_is_ingested_by_a_consumer(
    world: World, process: Callable[..., Process], tmp_path: Path
):
    """The file system is kombu's own; it stands for every broker that is not Redis."""
    for name in ("queues", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "filed.py").write_text(
        "import os\nfrom celery import Celery\n"
        "app = Celery('filed', broker='filesystem://', backend=os.environ['APP_BACKEND'])\n"
        "app.conf.broker_connection_retry_on_startup = True\n"
        "app.conf.broker_transport_options = {\n"
        f"    'data_folder_in': {str(tmp_path / 'queues')!r},\n"
        f"    'data_folder_out': {str(tmp_path / 'queues')!r},\n"
        f"    'control_folder': {str(tmp_path / 'control')!r},\n"
        "}\n"
    )
    environ = {
        name: value
        for name, value in world.environment.items()
        if name not in {"DRAWBRIDGE_BROKER_URL", "DRAWBRIDGE_RESULT_BACKEND"}
    }
    environ |= {
        "APP_BACKEND": world.backend_url,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    argv = [str(Path(sys.executable).with_name("drawbridge")), "bridge", "-A", "filed"]
    bridge = process([*argv, "-n", "bridge@here"], env=environ, cwd=tmp_path)
    bridge.wait_for("bridge@here ready")
    world.app.conf.update(
        broker_url="filesystem://",
        broker_transport_options={
            "data_folder_in": str(tmp_path / "queues"),
            "data_folder_out": str(tmp_path / "queues"),
            "control_folder": str(tmp_path / "control"),
        },
    )
    sent = [world.send(kwargs={"n": n}, compression="zlib") for n in range(3)]
    for _ in sent:
        job = world.claim()
        world.complete(job, job.payload["n"])
    assert [one.get(timeout=GET_S) for one in sent] == [0, 1, 2]
    assert bridge.terminate() == 0


def test_an_app_that_was_installed_on_routes_as_its_orchestrator_does(
    world: World, process: Callable[..., Process], tmp_path: Path
):
    # a package of several modules, as orchestrators have
    package = tmp_path / "proj"
    package.mkdir()
    (package / "__init__.py").write_text("from proj.celery import app\n")
    (package / "settings.py").write_text("BRIDGED = ('remote',)\n")
    (package / "celery.py").write_text(
        "from broker.bridge.app import install\n"
        "from proj import settings\n"
        "from tests.e2e.local_app import app\n"
        "app.autodiscover_tasks(['proj'])\n"
        "install(app, queues=settings.BRIDGED)\n"
    )
    (package / "tasks.py").write_text(
        "from celery import shared_task\n"
        "@shared_task(name='proj.titled', queue='celery')\n"
        "def titled(parent, title): return title\n"
    )
    environ = world.environment | {
        "APP_BROKER": world.broker_url,
        "APP_BACKEND": world.backend_url,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    argv = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-P", "threads"]
    queue = ["-Q", "drawbridge.maintenance", "-n", "bridge@here", "-l", "INFO"]
    bridge = process([*argv, *queue], env=environ, cwd=tmp_path)
    bridge.wait_for("bridge@here ready")
    world.local_worker()
    nowhere_in_particular = world.app.signature("local.report", kwargs={"title": "t"})
    sent = world.send(link=nowhere_in_particular)
    world.complete(world.claim(), {"changedFiles": ["a"]})
    sent.get(timeout=GET_S)
    (linked,) = sent.children
    assert linked.get(timeout=GET_S) == {"title": "t", "changed": ["a"]}
    assert bridge.terminate() == 0
