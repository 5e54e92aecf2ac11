"""A daemon whose machine is hours off, and set right and wrong again while it works."""

import os
from pathlib import Path

import pytest

from tests.chaos.skews import Skew
from tests.contract.edge.conftest import Caller
from tests.faults.worker.conftest import Start
from tests.faults.worker.test_network import running_child
from tests.lossy import Lossy
from tests.processes import until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180)]
HOUR_S = 3600.0


def test_a_wall_clock_that_jumps_by_hours_costs_no_lease(
    start: Start, lossy: Lossy, user: Caller, tmp_path: Path, job_types: Path
) -> None:
    gate = tmp_path / "gate"
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(gate), "n": 7}}).json
    skew = Skew(tmp_path / "clock", HOUR_S)
    environ = skew.environ()
    environ["PYTHONPATH"] += f"{os.pathsep}{job_types}"
    daemon = start("--once", lease_seconds=6, environ=environ)
    until(lambda: running_child(tmp_path), 60, what="the child runs")
    for offset_s in (-HOUR_S, 2 * HOUR_S):
        skew.jump(offset_s)
        said = lossy.calls.count("heartbeat")
        daemon.until(lambda n=said: lossy.calls.count("heartbeat") > n, 60, "it is heard again")
    gate.touch()
    assert daemon.wait(60) == 0
    done = user.get(f"/jobs/{job['id']}").json
    assert (done["status"], done["attempt"], done["result"]) == ("succeeded", 1, {"n": 7})
