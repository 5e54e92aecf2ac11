"""What has a bound on time, measured in peace: wake-ups, a lease that lapses, a lost index."""

import threading
import time
from typing import Any, Final

import sqlalchemy as sa

from tests.chaos.facts import Rebuild
from tests.chaos.reading import redis_at
from tests.chaos.world import QUEUE, World, spin
from tests.processes import until

WAKES: Final = 8
PATIENCE_S: Final = 60.0


def measure(world: World) -> list[float]:
    """Measure what has a bound, in peace: wake-ups, and a lease that lapses."""
    edge, _ = world.worker("probe", allowedJobTypes=["probe"])
    giver = world.operator(world.log("giver"))
    try:
        wakes = [_wake(edge, giver) for _ in range(WAKES)]
        _lapse(edge, giver)
    finally:
        edge.close()
        giver.close()
    return wakes


def _create(giver: Any, kind: str) -> str:
    body = {"type": kind, "payload": {}, "queue": QUEUE}
    answer = giver.call("create", "/jobs", body, what={}, pick=lambda found: {"id": found["id"]})
    assert answer is not None
    assert answer.ok, answer
    return str(answer.body["id"])


def _wake(edge: Any, giver: Any) -> float:
    """Let a claim wait, give it a job, and time the answer; then complete the job."""
    told: dict[str, Any] = {}

    def wait() -> None:
        body = {"workerId": "probe", "leaseSeconds": 10, "waitSeconds": 10}
        told["answer"] = edge.call("wake", "/jobs/claim", body, what={})
        told["at"] = time.monotonic()

    waiter = threading.Thread(target=wait)
    waiter.start()
    # long enough for the claim to have found nothing and to wait
    time.sleep(0.3)
    begun = time.monotonic()
    job_id = _create(giver, "probe")
    waiter.join(PATIENCE_S)
    [job] = told["answer"].body["jobs"]
    assert job["id"] == job_id
    done = {"workerId": "probe", "leaseId": job["leaseId"], "result": {}}
    edge.call(
        "complete", f"/jobs/{job_id}/complete", done, job=job_id, lease=job["leaseId"],
        what={"result": {}}, pick=lambda found: {"status": found["status"]},
    )  # fmt: skip
    return float(told["at"] - begun)


def _lapse(edge: Any, giver: Any) -> None:
    """Let a lease lapse in peace; the oracle sees when the ledger ended it."""
    job_id = _create(giver, "probe")
    body = {"workerId": "probe", "leaseSeconds": 2, "waitSeconds": 10}
    [job] = edge.call("wake", "/jobs/claim", body, what={}).body["jobs"]
    mine = {"workerId": "probe", "leaseId": job["leaseId"], "leaseSeconds": 2}
    edge.call(
        "heartbeat", f"/jobs/{job_id}/heartbeat", mine, job=job_id, lease=job["leaseId"],
        what={"lease_s": 2},
    )  # fmt: skip

    def lapsed() -> bool:
        found = giver.call("look", f"/jobs/{job_id}", job=job_id, what={})
        return bool(found.body["status"] == "queued")

    until(lapsed, PATIENCE_S, what="the lease has lapsed")
    # its next attempt is half a minute away
    giver.call(
        "cancel", f"/jobs/{job_id}/cancel", {}, job=job_id, what={},
        pick=lambda found: {"status": found["status"]},
    )  # fmt: skip


def rebuild(world: World) -> Rebuild:
    """Flush the index under load, and time the building of the next."""
    with world.engine().connect() as conn:
        live = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
        jobs = int(conn.execute(sa.text(live)).scalar_one())
    with redis_at(world.reservations.url) as client:
        client.flushall()
        tag = f"{{db:{QUEUE}}}:"
        # who finds out, and when, is another question: claims at once, reconcile within 5 s
        assert spin(lambda: bool(client.exists(f"{tag}building", f"{tag}gen")), PATIENCE_S)
        begun = time.monotonic()
        assert spin(lambda: bool(client.exists(f"{tag}gen")), PATIENCE_S)
        return Rebuild(jobs=jobs, seconds=time.monotonic() - begun)
