"""What the demo sees of a job: its log as it grows, one of its files, and Flower's word for it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import requests

from broker.client import Client, Event

TIMEOUT_S: Final = 10.0
#: How long one question for new events may wait for one; between two the rest is looked at.
EVENTS_WAIT_S: Final = 1
#: How long the bridge may take to bring a job.
UNKNOWN_S: Final = 30.0
#: Flower hears of a job's end a moment after the orchestrator.
FLOWER_S: Final = 20.0
PATCH: Final = "patches/changes.patch"

JSON = dict[str, Any]


class NotShown(Exception):
    """Flower does not show what it should."""


class _Abandoned(Exception):
    """Nobody waits for the job any more."""


class Flower:
    """An ordinary Flower, asked by its own API."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = requests.Session()
        # It is on loopback; no proxy, no .netrc.
        self._http.trust_env = False

    def check(self, job_id: str, worker_id: str) -> str:
        """Return the node once it is shown online with the job as its task in state SUCCESS."""
        deadline = time.monotonic() + FLOWER_S
        while True:
            task = self._get(f"/api/task/info/{job_id}")
            node = str(task.get("worker"))
            online = [n for n, alive in self._get("/api/workers?status=true").items() if alive]
            if task.get("state") == "SUCCESS" and node in online and node.startswith(worker_id):
                return node
            if time.monotonic() > deadline:
                raise NotShown(
                    f"Flower shows the task as {task.get('state')} on {node}; online: {online}"
                )
            time.sleep(0.2)

    def _get(self, path: str) -> JSON:
        response = self._http.get(f"{self._url}{path}", timeout=TIMEOUT_S)
        if response.status_code == requests.codes.not_found:
            return {}
        response.raise_for_status()
        answer: JSON = response.json()
        return answer


def follow(edge: Client, job_id: str, *, alive: Callable[[], bool]) -> Iterator[Event]:
    """Yield the events of a job to the last one, or until nobody waits for it any more."""
    last = 0

    def seen(_job: object) -> None:
        if not alive():
            raise _Abandoned

    try:
        for event in edge.follow(job_id, unknown_s=UNKNOWN_S, wait_s=EVENTS_WAIT_S, seen=seen):
            last = event["seq"]
            yield event
    except _Abandoned:
        yield from edge.events(job_id, after=last)


def text_of(edge: Client, job_id: str, name: str) -> str:
    """Return the text of a job's newest file of this name; empty when there is none."""
    found = [one for one in edge.artifacts(job_id) if one["name"] == name]
    if not found:
        return ""
    with TemporaryDirectory() as folder:
        file = edge.download(max(found, key=lambda one: one["fence"]), Path(folder) / "file")
        return file.read_text(encoding="utf-8", errors="replace")
