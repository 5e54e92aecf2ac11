"""The main job, all the way: plain Celery, the real Codex CLI, a worker that sees only the edge."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psutil
import pytest
import requests
from celery import Celery, chain

from deploy.demo import codex_home, repository
from deploy.demo.model_server import ModelServer
from deploy.demo.scripts import SCRIPTS, Script
from tests.processes import Process, until
from tests.stacks import Stack, start_up, wait_for_status

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.codex,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("spine"),
]
RESULT_S: Final = 120
ROOT: Final = Path(__file__).resolve().parents[2]


class World:
    """One stack with one remote worker, a scripted model, a repository and an orchestrator."""

    def __init__(self, stack: Stack, app: Celery, repo: Path, model_port: int) -> None:
        self.stack = stack
        self.app = app
        self.repository = repo
        self.model_port = model_port

    def codex_exec(self, **kwargs: Any) -> Any:
        """Return the task as an orchestrator signs it: by name, with a queue."""
        payload = {"repository": f"file://{self.repository}", "instruction": "Greet by name."}
        return self.app.signature("codex_exec", kwargs=payload | kwargs, queue="remote")


@contextmanager
def running(
    process: Callable[..., Process], folder: Path, codex: str, script: Script
) -> Iterator[World]:
    repo = folder / "repository"
    repository.create(repo)
    home = ROOT / ".demo" / f"test-home-{os.getpid()}-{uuid4().hex[:8]}"
    with ModelServer(script) as model_url:
        sandbox = codex_home.prepare(home, codex=codex, model_url=model_url)
        stack = start_up(
            process, folder / "data", "--", "--codex", codex, "--codex-home", str(home),
            "--codex-sandbox", sandbox, "--allow-repository", f"file://{repo}", workers=1,
        )  # fmt: skip
        with stack.orchestrator() as app:
            yield World(stack, app, repo, int(model_url.rsplit(":", 1)[1].split("/")[0]))
        assert stack.process.terminate(timeout=60) == 0
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def world(
    module_process: Callable[..., Process], tmp_path_factory: pytest.TempPathFactory, codex: str
) -> Iterator[World]:
    """Give the stack of the module, whose model edits and ends."""
    folder = tmp_path_factory.mktemp("spine")
    with running(module_process, folder, codex, SCRIPTS["edit"]) as made:
        yield made


@pytest.fixture
def slow_world(process: Callable[..., Process], tmp_path: Path, codex: str) -> Iterator[World]:
    """Give a stack whose model takes its time."""
    with running(process, tmp_path, codex, SCRIPTS["slow"]) as made:
        yield made


def local_worker(world: World, process: Callable[..., Process]) -> None:
    """Start the ordinary Celery worker of the orchestrator's side."""
    told = world.stack.told
    env = {"APP_BROKER": told["brokerUrl"], "APP_BACKEND": told["resultBackend"]}
    argv = [sys.executable, "-m", "celery", "-A", "tests.e2e.local_app", "worker", "-Q", "local"]
    process(
        [*argv, "-P", "solo", "-n", "local@here", "-l", "WARNING"],
        env={**os.environ, **env},
        cwd=ROOT,
    )
    until(
        lambda: any("local@here" in reply for reply in world.app.control.ping(timeout=1)),
        what="the local worker answers",
    )


def test_send_task_comes_back_with_a_patch_and_flower_saw_it(world: World, tmp_path: Path):
    told = world.stack.told
    sent = world.app.send_task("codex_exec", kwargs=dict(world.codex_exec().kwargs), queue="remote")
    result = sent.get(timeout=RESULT_S)

    assert set(result) >= {
        "summary", "patch", "log", "changedFiles", "baseCommit", "publish", "durationSeconds",
    }  # fmt: skip
    base = git(world.repository, "rev-parse", "HEAD").strip()
    assert result["baseCommit"] == base
    assert result["changedFiles"]

    # the patch applies to the very commit it started from, and changes what it says
    patch = download(world, sent.id, "patches/changes.patch")
    assert result["patch"]["digest"] == f"sha256:{hashlib.sha256(patch).hexdigest()}"
    clone = tmp_path / "check"
    git(tmp_path, "clone", "-q", str(world.repository), str(clone))
    (tmp_path / "p").write_bytes(patch)
    git(clone, "apply", "--index", str(tmp_path / "p"))
    changed = git(clone, "diff", "--cached", "--name-only").split()
    assert sorted(changed) == sorted(result["changedFiles"])
    assert download(world, sent.id, "logs/codex_exec.log")

    # ops see it where they always look
    flower = told["flowerUrl"]
    workers = requests.get(f"{flower}/workers?json=1", timeout=10).json()["data"]
    assert {w["hostname"]: w["status"] for w in workers}["worker-1@edge"] is True
    task = until(lambda: succeeded(flower, sent.id), what="Flower shows the task as SUCCESS")
    assert (task["worker"], task["name"]) == ("worker-1@edge", "codex_exec")
    job = world.stack.operator.get(f"/jobs/{sent.id}")
    assert (job["status"], job["attempt"], job["fence"]) == ("succeeded", 1, 1)
    messages = [e["message"] for e in world.stack.operator.get(f"/jobs/{sent.id}/events")["items"]]
    assert messages[:2] == ["Job queued", "Job claimed"]
    assert messages[-1] == "Job completed"


def test_chains_run_through_both_worlds(world: World, process: Callable[..., Process]):
    local_worker(world, process)
    report = world.app.signature("local.report", args=("after",), queue="local")
    after = chain(world.codex_exec(), report, app=world.app)()
    prepare = world.app.signature("local.prepare", args=("first",), queue="local")
    before = chain(prepare, world.codex_exec(), app=world.app)()

    answer = after.get(timeout=RESULT_S)
    assert answer["title"] == "after"
    assert answer["changed"]
    assert before.get(timeout=RESULT_S)["changedFiles"] == answer["changed"]
    # what the first link returned is in the payload, beside the job's own arguments
    job = world.stack.operator.get(f"/jobs/{before.id}")
    assert job["payload"]["args"] == [{"word": "first"}]


def test_a_failing_run_raises_at_the_orchestrator(world: World):
    sent = world.codex_exec(repository=f"file://{world.repository}", ref="no-such-branch").delay()
    with pytest.raises(Exception, match="no-such-branch"):
        sent.get(timeout=RESULT_S)
    unsupported = world.app.send_task("codex_skill", kwargs={"skill": "x"}, queue="remote")
    with pytest.raises(Exception, match="codex_skill"):
        unsupported.get(timeout=RESULT_S)
    job = wait_for_status(world.stack.operator, unsupported.id, "failed")
    assert job["attempt"] == 1


def test_the_worker_and_its_child_talk_to_the_edge_git_and_the_model_alone(slow_world: World):
    """The central promise, read from /proc while a job runs."""
    world = slow_world
    told = world.stack.told
    worker = psutil.Process(told["pids"]["worker-1"])
    peers: dict[tuple[str, int], set[str]] = {}
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.02):
            for one in family(worker):
                for peer in remote_addresses(one):
                    peers.setdefault(peer, set()).add(name(one))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sent = world.codex_exec().delay()
        sent.get(timeout=RESULT_S)
    finally:
        stopping.set()
        watcher.join()

    edge_port = int(told["edgeUrl"].rsplit(":", 1)[1])
    allowed = {("127.0.0.1", edge_port), ("127.0.0.1", world.model_port)}
    assert ("127.0.0.1", edge_port) in peers, "the watch saw nothing"
    assert ("127.0.0.1", world.model_port) in peers, "the watch missed the child"
    assert set(peers) <= allowed, peers

    # nor does it hold an address it could use: not in its environment, not in its arguments
    secrets = [told[k] for k in ("brokerUrl", "resultBackend", "reservationsUrl", "databaseUrl")]
    said = [*worker.environ().values(), *worker.cmdline()]
    assert not [secret for secret in secrets if any(secret in word for word in said)]


def family(worker: psutil.Process) -> list[psutil.Process]:
    try:
        return [worker, *worker.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def name(one: psutil.Process) -> str:
    try:
        return one.name()
    except psutil.Error:
        return "gone"


def remote_addresses(one: psutil.Process) -> set[tuple[str, int]]:
    try:
        return {(c.raddr.ip, c.raddr.port) for c in one.net_connections("inet") if c.raddr}
    except psutil.Error:
        return set()


def succeeded(flower: str, task_id: str) -> Any:
    answer = requests.get(f"{flower}/api/task/info/{task_id}", timeout=10)
    task = answer.json() if answer.status_code == 200 else {}
    return task if task.get("state") == "SUCCESS" else None


def download(world: World, job_id: str, wanted: str) -> bytes:
    files = world.stack.operator.get(f"/jobs/{job_id}/artifacts")["items"]
    [found] = [one["id"] for one in files if one["name"] == wanted]
    return world.stack.operator.call("GET", f"/jobs/{job_id}/artifacts/{found}/download").content


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout
