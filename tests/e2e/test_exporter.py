"""A Prometheus exporter for Celery, from PyPI and unchanged, beside remote workers' jobs.

It has an environment of its own, made once in `.demo`: it wants an older redis-py and an older
prometheus-client than this project is locked to.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.bridges import ROOT, World, holder, world_of
from tests.processes import Process
from tests.services import Valkey, free_port, missing, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

WAIT_S: Final = 60.0
#: the one of Dani Hodovic, by the name it has on PyPI
EXPORTER: Final = "prometheus-exporter-celery==0.11.2"
FOLDER: Final = ROOT / ".demo" / EXPORTER.replace("==", "-")
#: the newest whose kombu still takes the redis-py that the exporter asks for
BESIDE: Final = "celery[redis]==5.5.3"
#: what the container of its own project runs
PROGRAM: Final = "from src.cli import cli; cli(auto_envvar_prefix='CE')"
BRIDGE: Final = "here"
WORKER: Final = "worker-1.edge"


@pytest.fixture(scope="session")
def exporter() -> Path:
    """Give the Python that has the exporter."""
    python, made = FOLDER / "bin" / "python", FOLDER / ".made"
    if not made.exists():
        install = [python, "-m", "pip", "install", "--quiet", "--quiet", EXPORTER, BESIDE]
        for argv in ([sys.executable, "-m", "venv", "--clear", FOLDER], install):
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=180)
            if done.returncode:
                missing(f"{EXPORTER} cannot be installed: {done.stderr[-500:]}")
        made.touch()
    return python


@pytest.fixture
def world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    with world_of(start_valkey, tmp_path, process) as made:
        made.app.conf.task_send_sent_event = True
        made.bridge(environ={"DRAWBRIDGE_NODE_SUFFIX": "%w.edge"})
        yield made


class Metrics:
    """What the exporter says when it is scraped."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> dict[tuple[str, str], float]:
        """Return the values by metric and hostname, of the remote tasks or of no task."""
        try:
            text = requests.get(self._url, timeout=WAIT_S).text
        except requests.ConnectionError:
            return {}
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                if "hostname" in labels and labels.get("name", "t") == "t" and sample.value:
                    key = (sample.name, labels["hostname"])
                    found[key] = found.get(key, 0) + sample.value
        return found


def total(found: dict[tuple[str, str], float], event: str) -> dict[str, float]:
    """Return how many tasks there were of an event, by hostname."""
    name = f"celery_task_{event}_total"
    return {host: value for (metric, host), value in found.items() if metric == name}


def run_one_of_each(world: World) -> None:
    """Let tasks succeed, fail, be tried again, be revoked while they wait and while they run."""

    def ended(sent: Any) -> None:
        until(sent.ready, WAIT_S, "the end is told")

    done = world.send("t")
    world.complete(world.claim(), 1)
    failed = world.send("t")
    world.fail(world.claim(), "no", error_type="ValueError")
    again = world.send("t")
    world.fail(world.claim(), "again", retryable=True, retry_after_s=0.0)
    world.complete(world.claim(), 2)
    held = world.send("t", countdown=3600)
    job = until(lambda: world.catalog.find(held.id), WAIT_S, "the job")
    world.queue.cancel(job.id)
    stopped = world.send("t")
    running = world.claim()
    world.queue.cancel(running.id)
    world.queue.cancel_ack(running.id, holder(running))
    for sent in (done, failed, again, held, stopped):
        ended(sent)


def test_an_exporter_from_pypi_counts_remote_tasks_by_their_workers(
    world: World, process: Callable[..., Process], exporter: Path
):
    port = free_port()
    address = ["--broker-url", world.broker_url, "--host", "127.0.0.1", "--port", str(port)]
    running = process([exporter, "-c", PROGRAM, *address], cwd=world.folder)
    metrics = Metrics(f"http://127.0.0.1:{port}/metrics")
    world.queue.seen("worker-1")

    def ups() -> bool:
        world.queue.seen("worker-1")
        found = metrics.read()
        return all(found.get(("celery_worker_up", one)) == 1 for one in (WORKER, BRIDGE))

    running.until(ups, WAIT_S, "both nodes are up")
    run_one_of_each(world)

    def ended() -> dict[tuple[str, str], float] | None:
        """Return the figures of one scrape, of two seconds each, once the last end is told."""
        read = metrics.read()
        return read if total(read, "revoked") == {BRIDGE: 1, WORKER: 1} else None

    found = until(ended, WAIT_S, "the last is told")
    assert sum(total(found, "sent").values()) == 5
    assert total(found, "received") == {BRIDGE: 5}
    assert total(found, "started") == {WORKER: 5}
    assert total(found, "succeeded") == {WORKER: 2}
    assert total(found, "failed") == {WORKER: 1}
    assert total(found, "retried") == {WORKER: 1}
    assert total(found, "rejected") == {}
    assert found["celery_task_runtime_count", WORKER] == 2
