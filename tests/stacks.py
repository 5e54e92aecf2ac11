"""Whole stacks for tests: the only place that knows how one is started and spoken to over HTTP."""

import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests
from celery import Celery

from broker.stack.programs import command
from tests.processes import Process, until

READY_S: Final = 90.0


class Client:
    """One credential's view of an edge."""

    def __init__(self, edge_url: str, token: str) -> None:
        self.url = f"{edge_url}/api/queue"
        self._token = token
        self._local = threading.local()

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send one request; a session a thread, because connections are not shared safely."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {self._token}"
        return session.request(method, self.url + path, timeout=(5, 40), **more)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> requests.Response:
        """POST JSON."""
        return self.call("POST", path, json=body, headers=headers)

    def get(self, path: str) -> Any:
        """GET JSON that must be there."""
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Stack:
    """A running `drawbridge up` and what it told of itself."""

    def __init__(self, process: Process, told: dict[str, Any]) -> None:
        self.process = process
        self.told = told
        self.operator = Client(told["edgeUrl"], told["operatorToken"])

    def pid(self, role: str) -> int:
        """Give the newest process id of a role: what dies is restarted."""
        record = json.loads((Path(self.told["dataDir"]) / "processes.json").read_text())
        return {entry["name"]: int(entry["pid"]) for entry in record}[role]

    @contextmanager
    def orchestrator(self) -> Iterator[Celery]:
        """Give an ordinary Celery app on the stack's broker and result backend."""
        told = self.told
        with Celery(broker=told["brokerUrl"], backend=told["resultBackend"]) as app:
            yield app
            # a result that outlives the stack asks the dead server 20 times, a second apart
            app.backend.result_consumer.cancel_for = lambda _: None

    def kill(self, role: str) -> None:
        """Kill a role by SIGKILL, waiting first until it lives: what dies is restarted."""

        def strike() -> bool:
            try:
                os.kill(self.pid(role), signal.SIGKILL)
            except (KeyError, ProcessLookupError):
                return False
            return True

        until(strike, 60, what=f"{role} lives")

    def worker(self, worker_id: str, **policy: Any) -> Client:
        """Issue a token and speak as that worker."""
        made = self.operator.post("/workers/tokens", {"workerId": worker_id} | policy)
        assert made.status_code == 201, made.text
        return Client(self.told["edgeUrl"], made.json()["token"])


def start_up(
    process: Callable[..., Process], folder: Path, *options: str, workers: int = 0
) -> Stack:
    """Start `drawbridge up --json` and wait until it says that all is ready."""
    argv = [command("drawbridge"), "up", "--json", "--data-dir", str(folder)]
    started = process([*argv, "--workers", str(workers), *options], stdout_apart=True)
    line = started.until(
        lambda: "\n" in started.stdout() and started.stdout(), READY_S, what="the stack is ready"
    )
    return Stack(started, json.loads(line))


class Loop:
    """A worker loop over plain HTTP: claims, and hands each job to `work`; survives the edge."""

    def __init__(self, client: Client, worker_id: str, work: Callable[[Client, Any], None]) -> None:
        self.client = client
        self.worker_id = worker_id
        self.work = work
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Loop":
        """Begin to claim."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Claim no more, and wait for the job at hand."""
        self.stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for job in self._claims():
            self.work(self.client, job)

    def _claims(self) -> Iterator[Any]:
        body = {"workerId": self.worker_id, "leaseSeconds": 15, "waitSeconds": 2}
        while not self.stopping.is_set():
            key = str(uuid.uuid4())
            answer = retried(
                lambda key=key: self.client.post("/jobs/claim", body, **{"Idempotency-Key": key}),
                self.stopping,
            )
            if answer is not None and answer.status_code == 200 and answer.json()["job"]:
                yield answer.json()["job"]


def retried(
    send: Callable[[], requests.Response], stopping: threading.Event, *, pause_s: float = 0.1
) -> requests.Response | None:
    """Send until anything but a 5xx comes back, as a worker does; None when told to stop."""
    while not stopping.is_set():
        try:
            answer = send()
        except requests.RequestException:
            stopping.wait(pause_s)
            continue
        if answer.status_code < 500:
            return answer
        stopping.wait(pause_s)
    return None


def wait_for_status(operator: Client, job_id: str, status: str, timeout: float = 30.0) -> Any:
    """Wait until a job has a status and return it."""

    def look() -> Any:
        job = operator.get(f"/jobs/{job_id}")
        return job if job["status"] == status else None

    return until(look, timeout, what=f"job {job_id} is {status}")
