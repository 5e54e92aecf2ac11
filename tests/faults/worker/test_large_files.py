"""Files above 8 MiB on a network that lets down: sent in parts, and only what is missing again."""

from pathlib import Path

import pytest

from tests import lossy as fates
from tests.contract.edge.conftest import Caller
from tests.faults.worker.conftest import Start
from tests.faults.worker.test_daemon_dies import ending
from tests.lossy import Fate, Lossy
from tests.processes import until

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180)]
MIB = 17
PARTS = ["1", "2", "3"]


def content() -> bytes:
    return b"".join(n.to_bytes(4, "big") * 2**18 for n in range(MIB))


def downloaded(user: Caller, job_id: str) -> bytes:
    [file] = user.get(f"/jobs/{job_id}/artifacts").json["items"]
    got = user.get(f"/jobs/{job_id}/artifacts/{file['id']}/download")
    data: bytes = got.data
    got.close()
    return data


@pytest.mark.parametrize("fate", [fates.DROPPED, fates.TRUNCATED], ids=["dropped", "truncated"])
def test_each_call_of_an_upload_loses_its_answer(
    start: Start, lossy: Lossy, user: Caller, fate: Fate
) -> None:
    lossy.fate = lambda verb, n: fate if verb in {"uploads", *PARTS} and n == 1 else None
    job = user.post("/jobs", {"type": "child", "payload": {"mib": MIB}}).json
    assert start("--once").wait(120) == 0
    assert user.get(f"/jobs/{job['id']}").json["status"] == "succeeded"
    assert downloaded(user, job["id"]) == content()
    assert [lossy.calls.count(verb) for verb in ("uploads", *PARTS, "upload")] == [2, 2, 2, 2, 0]


def test_the_next_daemon_goes_on_where_a_killed_one_was(
    start: Start, lossy: Lossy, user: Caller, tmp_path: Path
) -> None:
    lossy.fate = lambda verb, _n: fates.BUSY if verb == "3" else None
    job = user.post("/jobs", {"type": "child", "payload": {"mib": MIB}}).json
    first = start(lease_seconds=120)
    until(lambda: "3" in lossy.calls, 90, what="two parts are there")
    assert [ending(path) for path in (tmp_path / "work" / "spool").glob("*.json")] == ["complete"]
    first.kill()
    said = len(lossy.calls)
    lossy.fate = lambda _verb, _n: None
    assert start(idle_exit=0.1).wait(90) == 0
    assert [verb for verb in lossy.calls[said:] if verb in PARTS] == ["3"]
    assert user.get(f"/jobs/{job['id']}").json["status"] == "succeeded"
    assert downloaded(user, job["id"]) == content()
