"""Short jobs through one worker's slots, with kills of worker and edge; what must be true after."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import jobtypes
from tests.processes import Process, until
from tests.stacks import Stack, start_up

ROOT = Path(__file__).resolve().parents[2]
WORKER = "soaked"
SLOTS = 4
#: all jobs of an hour's run may fail this often, for every kill costs those at hand an attempt
ATTEMPTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came of it."""

    jobs: int
    seconds: float
    statuses: dict[str, int]
    #: jobs whose log has not exactly one end
    ends_wrong: int
    attempts: int
    worker_kills: int
    edge_kills: int
    orphans: int
    #: workspaces and reports left at the end
    left: int
    #: of the daemon that lived last, MiB, after its start and at the end
    memory_first: float
    memory_last: float


class Soak:
    """One run in one folder."""

    def __init__(self, process: Callable[..., Process], folder: Path, *, seed: int) -> None:
        self._process = process
        self._folder = folder
        self._dice = random.Random(seed)
        self._stack: Stack = start_up(process, folder / "data", "--no-flower")
        self._types = jobtypes.install(folder / "types")
        token = self._stack.operator.post("/workers/tokens", {"workerId": WORKER}).json()["token"]
        self._token = folder / "token"
        self._token.write_text(token)
        self._token.chmod(0o600)
        self._killed: Counter[str] = Counter()
        self._worker = self._start()
        self._memory: list[float] = []

    def run(self, *, jobs: int, worker_kills: int, edge_kills: int) -> Figures:
        """Queue, kill, wait for the end, and look what is left."""
        begun = time.monotonic()
        post = self._stack.operator.post
        ids = [
            post("/jobs", {"type": "child", "payload": {"n": n}, "maxAttempts": ATTEMPTS}).json()[
                "id"
            ]
            for n in range(jobs)
        ]
        kills = ["worker"] * worker_kills + ["edge"] * edge_kills
        self._dice.shuffle(kills)
        for number, victim in enumerate(kills):
            self._until_done(jobs * (number + 1) // (len(kills) + 2))
            self._kill(victim)
        self._sample()
        self._until_done(jobs)
        self._sample()
        self._worker.send(signal.SIGTERM)
        self._worker.wait(60)
        done = [self._stack.operator.get(f"/jobs/{one}") for one in ids]
        return Figures(
            jobs=jobs,
            seconds=round(time.monotonic() - begun, 1),
            statuses=dict(Counter(job["status"] for job in done)),
            ends_wrong=sum(self._ends(one) != 1 for one in ids),
            attempts=sum(job["attempt"] for job in done),
            worker_kills=self._killed["worker"],
            edge_kills=self._killed["edge"],
            orphans=len(orphans(self._folder)),
            left=sum(len(list((self._folder / "work" / d).iterdir())) for d in ("jobs", "spool")),
            memory_first=self._memory[0],
            memory_last=self._memory[-1],
        )

    def _start(self) -> Process:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self._types)}
        environment |= {"HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)}
        argv = [
            sys.executable, "-m", "remote_worker", "run", "--url", self._stack.told["edgeUrl"],
            "--token-file", str(self._token), "--worker-id", WORKER, "--work-dir",
            str(self._folder / "work"), "--types", "child", "--concurrency", str(SLOTS),
            "--wait-seconds", "5", "--lease-seconds", "30", "--log-format", "json",
        ]  # fmt: skip
        return self._process(argv, env=environment, cwd=ROOT)

    def _kill(self, victim: str) -> None:
        self._killed[victim] += 1
        if victim == "edge":
            self._stack.kill("edge")
            return
        self._worker.kill()
        self._worker = self._start()

    def _sample(self) -> None:
        info = psutil.Process(self._worker.pid).memory_info()
        self._memory.append(round(info.rss / 2**20, 1))

    def _until_done(self, wanted: int) -> None:
        until(lambda: self._done() >= wanted, 900, what=f"{wanted} jobs are done")

    def _done(self) -> int:
        """Count what has succeeded; an edge that is away has nothing to say.

        A worker that was started while the edge was away has ended (exit code 3), and is started
        again, as whatever supervises it would.
        """
        if self._worker.returncode is not None:
            self._worker = self._start()
        found: list[Any] = []
        cursor = ""
        while True:
            answer = _quietly(
                lambda cursor=cursor: self._stack.operator.get(
                    f"/jobs?status=succeeded&limit=200{cursor}"
                )
            )
            if answer is None:
                return len(found)
            found += answer["items"]
            if answer["nextCursor"] is None:
                return len(found)
            cursor = f"&cursor={answer['nextCursor'].replace('+', '%2B')}"

    def _ends(self, job_id: str) -> int:
        events = self._stack.operator.get(f"/jobs/{job_id}/events?limit=500")["items"]
        ends = {"Job completed", "Job failed", "Job cancelled"}
        return sum(event["message"] in ends for event in events)


def _quietly(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (OSError, AssertionError):
        return None


def orphans(folder: Path) -> list[int]:
    """Return processes of a run's jobs that are still there: other runs have others."""
    found = []
    for one in psutil.process_iter():
        try:
            environment = one.environ()
            ours = environment.get("HOME", "").startswith(f"{folder}/work/")
            if ours and "BRIDGE_JOB_ID" in environment and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


def told(figures: Figures) -> str:
    """Return the figures as one line of JSON."""
    return json.dumps(asdict(figures))
