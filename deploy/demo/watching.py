"""What the demo sees of a job: the only place of the demo that asks the edge and Flower."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import requests

TIMEOUT_S: Final = 10.0
#: How long one question for new events may wait for one.
EVENTS_WAIT_S: Final = 1
#: How soon to ask again for a job that the bridge has not brought yet.
UNKNOWN_S: Final = 0.05
#: Flower hears of a job's end a moment after the orchestrator.
FLOWER_S: Final = 20.0
PATCH: Final = "patches/changes.patch"
LOG: Final = "logs/codex_exec.log"
ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "dead_letter"})

JSON = dict[str, Any]


class NotShown(Exception):
    """Flower does not show what it should."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a job's log of events."""

    level: str
    message: str
    payload: JSON


class Edge:
    """The edge, asked as an operator."""

    def __init__(self, url: str, token: str) -> None:
        self._base = f"{url}/api/queue"
        self._http = _session()
        self._http.headers["Authorization"] = f"Bearer {token}"

    def status(self, job_id: str) -> str | None:
        """Return the status of a job, or None while the bridge has not brought it."""
        response = self._http.get(f"{self._base}/jobs/{job_id}", timeout=TIMEOUT_S)
        if response.status_code == requests.codes.not_found:
            return None
        response.raise_for_status()
        return str(response.json()["status"])

    def events(self, job_id: str, cursor: int, *, wait_s: int) -> tuple[list[Entry], int]:
        """Return what has happened since, waiting a moment if nothing has, and the new cursor."""
        response = self._http.get(
            f"{self._base}/jobs/{job_id}/events",
            params={"after": cursor, "waitSeconds": wait_s},
            timeout=TIMEOUT_S,
        )
        response.raise_for_status()
        answer = response.json()
        entries = [Entry(e["level"], e["message"], e["payload"] or {}) for e in answer["items"]]
        return entries, int(answer["cursor"] if answer["cursor"] is not None else cursor)

    def artifact(self, job_id: str, name: str) -> str:
        """Return the text of the newest artifact of this name; empty when there is none."""
        jobs = f"{self._base}/jobs/{job_id}/artifacts"
        listed = self._http.get(jobs, timeout=TIMEOUT_S)
        listed.raise_for_status()
        found = [one for one in listed.json()["items"] if one["name"] == name]
        if not found:
            return ""
        newest = max(found, key=lambda one: int(one["fence"]))
        response = self._http.get(f"{jobs}/{newest['id']}/download", timeout=TIMEOUT_S)
        response.raise_for_status()
        return response.content.decode("utf-8", errors="replace")


class Flower:
    """An ordinary Flower, asked by its own API."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = _session()

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


def follow(edge: Edge, job_id: str, *, alive: Callable[[], bool]) -> Iterator[Entry]:
    """Yield the events of a job to the last one, or until nobody waits for it any more."""
    cursor = 0
    while True:
        over = not alive()
        status = edge.status(job_id)
        if status is None:
            if over:
                return
            time.sleep(UNKNOWN_S)
            continue
        over = over or status in ENDED
        entries, cursor = edge.events(job_id, cursor, wait_s=0 if over else EVENTS_WAIT_S)
        yield from entries
        if over and not entries:
            return


def _session() -> requests.Session:
    session = requests.Session()
    # Everything here is on loopback; no proxy, no .netrc.
    session.trust_env = False
    return session
