"""`drawbridge edge --processes`: several that serve one port, and count and end as one."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import requests

from edge_api.processes import FOLDER
from tests.contract.edge.served import Served, StartProcess, start_edge
from tests.processes import until
from tests.services import free_port

pytestmark = pytest.mark.slow

LONG_S = 50
HEALTHY = 'drawbridge_requests_total{method="GET",route="/healthz",status="200"}'
WAITING = "drawbridge_waiting_calls"


def figure(port: int, name: str) -> float | None:
    """Read one figure; None while nobody serves it."""
    try:
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    except requests.ConnectionError:
        return None
    lines = [line.split(" ") for line in text.splitlines()]
    return next((float(line[-1]) for line in lines if line[0] == name), None)


def serving(served: Served) -> set[psutil.Process]:
    """Name the processes that answer."""
    return set(psutil.Process(served.process.pid).children())


def test_several_processes_serve_count_and_end_as_one(
    process: StartProcess, environment: dict[str, str]
) -> None:
    port = free_port()
    served = start_edge(process, environment, "--processes", "2", "--metrics-port", str(port))
    with closing(served):
        shared = Path(psutil.Process(served.process.pid).environ()[FOLDER])
        until(lambda: len(serving(served)) == 2)
        for _ in range(40):
            assert served.call("GET", "/healthz") == (200, {"status": "ok"})
        assert figure(port, HEALTHY) == 40
        killed = min(serving(served), key=lambda one: one.pid)
        killed.kill()
        until(lambda: len(serving(served) - {killed}) == 2)
        # what it counted still counts, whoever tells of it
        until(lambda: figure(port, HEALTHY) == 40)
        with ThreadPoolExecutor(6) as pool:
            claims = [pool.submit(served.claim, waitSeconds=LONG_S) for _ in range(6)]
            until(lambda: figure(port, WAITING) == 6)
            job = served.call("POST", "/api/queue/jobs", {"type": "t"})[1]
            until(lambda: any(claim.done() for claim in claims))
            served.process.send(signal.SIGTERM)
            answers = [claim.result(LONG_S) for claim in claims]
        assert [answer["id"] for answer in answers if answer] == [job["id"]]
        assert served.process.wait() == 0
        assert not shared.exists()
