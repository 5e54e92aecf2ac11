"""The real daemon on a network that lets it down: every job once, and the token to nobody else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import lossy as fates
from tests.contract.edge.conftest import Caller
from tests.faults.worker.conftest import Start
from tests.lossy import Fate, Lossy
from tests.processes import until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180)]
#: what each job needs; what comes before the first claim says at once that it does not work
VERBS = {"claim", "heartbeat", "events", "upload", "complete", "control"}


@pytest.mark.parametrize(
    "fate",
    [
        pytest.param(fates.DROPPED, id="replies dropped"),
        pytest.param(fates.TRUNCATED, id="replies truncated"),
        pytest.param(fates.CAPTIVE, id="200 from a captive portal"),
        pytest.param(fates.BUSY, id="503 without Retry-After"),
        pytest.param(fates.BUSY_FOR_A_SECOND, id="429 with Retry-After"),
        pytest.param(None, id="307 to another host"),
    ],
)
def test_each_call_fails_and_each_job_is_done_once(
    start: Start, lossy: Lossy, user: Caller, fate: Fate | None
) -> None:
    with Lossy("http://127.0.0.1:9") as stranger:
        told = fate or fates.moved(f"{stranger.url}/api/queue/jobs/claim")
        lossy.fate = lambda verb, n: told if verb in VERBS and n == 1 else None
        jobs = [user.post("/jobs", {"type": "child", "payload": {"n": n}}).json for n in range(2)]
        daemon = start(max_jobs=2)
        assert daemon.wait(120) == 0
        assert stranger.calls == [], "the token went to another host"
    for number, job in enumerate(jobs):
        done = user.get(f"/jobs/{job['id']}").json
        assert (done["status"], done["attempt"], done["result"]) == ("succeeded", 1, {"n": number})
        [file] = user.get(f"/jobs/{job['id']}/artifacts").json["items"]
        assert file["name"] == "made.txt"
        log = [one["message"] for one in user.get(f"/jobs/{job['id']}/events").json["items"]]
        assert (log.count("Job claimed"), log.count("Job completed")) == (1, 1)
    # each of them failed, and was said again
    assert all(lossy.calls.count(verb) >= 2 for verb in ("claim", "heartbeat", "upload"))


def test_the_way_leads_through_the_proxy_and_over_nothing_else(
    start: Start, lossy: Lossy, user: Caller
) -> None:
    job = user.post("/jobs", {"type": "echo"}).json
    # nobody listens at the edge's own address: only the proxy knows the way
    daemon = start("--once", url="http://127.0.0.1:9", proxy=lossy.url)
    assert daemon.wait(60) == 0
    assert user.get(f"/jobs/{job['id']}").json["status"] == "succeeded"


def test_a_cancel_reaches_the_child_by_order_alone(
    start: Start, lossy: Lossy, user: Caller, tmp_path: Path
) -> None:
    job = user.post("/jobs", {"type": "child", "payload": {"gate": str(tmp_path / "never")}}).json
    # one heartbeat, and the next after twenty minutes
    start("--once", lease_seconds=3600)
    child = until(lambda: running_child(tmp_path), 60, what="the child runs")
    beats = lossy.calls.count("heartbeat")
    asked = datetime.now(UTC)
    user.post(f"/jobs/{job['id']}/cancel")
    until(lambda: not alive(child), 30, what="the child is gone")
    took: timedelta = datetime.now(UTC) - asked
    print(f"cancel to the end of the child: {took.total_seconds():.2f} s")
    until(lambda: user.get(f"/jobs/{job['id']}").json["status"] == "cancelled", 30)
    assert lossy.calls.count("heartbeat") == beats


def running_child(folder: Path) -> int | None:
    for path in (folder / "work" / "jobs").glob("*/pid"):
        text = path.read_text()
        if text:
            return int(text)
    return None


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
