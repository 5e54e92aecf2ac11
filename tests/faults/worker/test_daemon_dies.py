"""The daemon is stopped, killed and started again: nothing is published late, nothing is lost."""

import json
import signal
from pathlib import Path

import pytest

from edge_api import order_waits
from tests import lossy as fates
from tests.contract.edge.conftest import Caller, Edge
from tests.faults.worker.conftest import WORKER, Start
from tests.faults.worker.test_network import alive, running_child
from tests.lossy import Lossy
from tests.processes import until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_daemon_that_slept_past_its_lease_publishes_nothing(
    start: Start, lossy: Lossy, edge: Edge, user: Caller, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(gate)}}).json
    daemon = start("--once", lease_seconds=3)
    child = until(lambda: running_child(tmp_path), 60, what="the child runs")
    daemon.send(signal.SIGSTOP)

    def given_up() -> bool:
        edge.services.queue.expiry.end_due("remote", limit=20)
        return bool(user.get(f"/jobs/{job['id']}").json["attempt"] == 2)

    until(given_up, 60, what="the lease has run out")
    # the work itself comes to its end while nobody watches
    gate.touch()
    until(lambda: not alive(child), 30, what="the child has ended")
    said = len(lossy.calls)
    daemon.send(signal.SIGCONT)
    assert daemon.wait(60) == 0
    assert not {"upload", "complete", "fail", "release"} & set(lossy.calls[said:])
    assert user.get(f"/jobs/{job['id']}/artifacts").json["items"] == []
    assert user.get(f"/jobs/{job['id']}").json["status"] == "queued"
    assert list((tmp_path / "work" / "jobs").iterdir()) == []


def test_finished_work_of_a_killed_daemon_is_reported_by_the_next(
    start: Start, lossy: Lossy, user: Caller, tmp_path: Path
) -> None:
    job = user.post("/jobs", {"type": "child", "payload": {"n": 7}}).json
    lossy.fate = lambda verb, _n: fates.BUSY if verb in ("upload", "complete") else None
    first = start(lease_seconds=120)
    spool = tmp_path / "work" / "spool"
    until(lambda: [p for p in spool.glob("*.json") if ending(p) == "complete"], 60)
    first.kill()
    assert user.get(f"/jobs/{job['id']}").json["status"] == "running"
    lossy.fate = lambda _verb, _n: None
    assert start(idle_exit=0.1).wait(60) == 0
    done = user.get(f"/jobs/{job['id']}").json
    assert (done["status"], done["attempt"], done["result"]) == ("succeeded", 1, {"n": 7})
    assert [one["name"] for one in user.get(f"/jobs/{job['id']}/artifacts").json["items"]] == [
        "made.txt"
    ]
    assert [*spool.iterdir(), *(tmp_path / "work" / "jobs").iterdir()] == []


@pytest.mark.parametrize("stands", [True, False], ids=["its lease stands", "its lease is gone"])
def test_an_edge_that_is_away_while_the_daemon_dies_hears_of_finished_work_when_it_is_back(
    start: Start, lossy: Lossy, edge: Edge, user: Caller, tmp_path: Path, *, stands: bool
) -> None:
    gate = tmp_path / "gate"
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(gate), "n": 7}}).json
    first = start(lease_seconds=120)
    until(lambda: running_child(tmp_path), 60, what="the child runs")
    lossy.fate = lambda _verb, _n: fates.BUSY
    gate.touch()
    spool = tmp_path / "work" / "spool"
    [record] = until(lambda: [p for p in spool.glob("*.json") if ending(p) == "complete"], 60)
    first.kill()
    if not stands:
        lease = json.loads(record.read_text())["job"]["lease_id"]
        lost = {"leaseId": lease, "errorMessage": "lost", "retryable": True}
        assert edge.worker(WORKER).say(job["id"], "fail", **lost).status_code == 200
    # whoever starts it now is told so, and nothing is forgotten over it
    assert start().wait(60) == 3
    lossy.fate = lambda _verb, _n: None
    said = len(lossy.calls)
    assert start(idle_exit=0.1, types="echo").wait(60) == 0
    done = user.get(f"/jobs/{job['id']}").json
    told = {"upload", "complete", "fail", "release"} & set(lossy.calls[said:])
    if stands:
        assert (done["status"], done["attempt"], done["result"]) == ("succeeded", 1, {"n": 7})
    else:
        assert (done["status"], done["attempt"], told) == ("queued", 2, set())
    assert [*spool.iterdir(), *(tmp_path / "work" / "jobs").iterdir()] == []


def test_unfinished_work_of_a_killed_daemon_is_given_up_at_once(
    start: Start, lossy: Lossy, user: Caller, tmp_path: Path
) -> None:
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(tmp_path / "no")}}).json
    first = start(lease_seconds=3600)
    child = until(lambda: running_child(tmp_path), 60, what="the child runs")
    first.kill()
    until(lambda: not alive(child), 30, what="the child died with its daemon")
    assert start(idle_exit=0.1).wait(60) == 0
    # an hour before its lease would have ended
    left = user.get(f"/jobs/{job['id']}").json
    assert (left["status"], left["attempt"]) == ("queued", 2)
    assert left["errorType"] == "worker_killed"
    assert list((tmp_path / "work" / "jobs").iterdir()) == []


@pytest.mark.parametrize("busy", [True, False], ids=["with a job", "idle"])
def test_a_revoked_token_stops_the_child_and_the_daemon_at_the_edges_next_look(
    start: Start, lossy: Lossy, edge: Edge, user: Caller, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, *, busy: bool,
) -> None:  # fmt: skip
    # neither a heartbeat nor a new call is due for a long time: calls that wait must hear of it
    monkeypatch.setattr(order_waits, "LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(edge.services.waiting, "_look_every_s", 0.3)
    child = None
    if busy:
        user.post("/jobs", {"type": "child", "payload": {"gate": str(tmp_path / "no")}})
    daemon = start(lease_seconds=3600, wait_seconds=50)
    if busy:
        child = until(lambda: running_child(tmp_path), 60, what="the child runs")
    until(lambda: "control" in lossy.calls if busy else "claim" in lossy.calls, 60)
    [token] = user.get("/workers/tokens").json["items"]
    user.post(f"/workers/tokens/{token['id']}/revoke")
    if child is not None:
        until(lambda: not alive(child), 40, what="the child is stopped")
    assert daemon.wait(40) == 4
    assert "the edge refuses this worker: 401" in daemon.output()
    # and so it is at the start
    assert start().wait(60) == 4


def test_a_token_that_is_rotated_is_taken_up_without_a_restart(
    start: Start, user: Caller, token_file: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(gate), "n": 7}}).json
    daemon = start("--once", lease_seconds=120)
    child = until(lambda: running_child(tmp_path), 60, what="the child runs")
    [token] = user.get("/workers/tokens").json["items"]
    rotated = user.post(f"/workers/tokens/{token['id']}/rotate", {"overlapSeconds": 3600}).json
    token_file.write_text(rotated["token"] + "\n")
    user.post(f"/workers/tokens/{token['id']}/revoke")
    gate.touch()
    assert daemon.wait(60) == 0
    assert not alive(child)
    assert user.get(f"/jobs/{job['id']}").json["result"] == {"n": 7}


def ending(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["report"]["ending"])
    except (OSError, ValueError):
        return ""
