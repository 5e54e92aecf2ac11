"""What has a bound on time, measured in peace: wake-ups, a lease that lapses, a lost index."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import sqlalchemy as sa

from tests.chaos.brokers import redis_at
from tests.chaos.edge import Answer, insist
from tests.chaos.facts import Rebuild
from tests.chaos.world import QUEUE, World, spin
from tests.processes import until

#: Worker and type of the calm.
PROBE: Final = "probe"
WAKES: Final = 8
LAPSE_S: Final = 2
PATIENCE_S: Final = 60.0


class Calm:
    """One worker and one operator of the calm's own."""

    def __init__(self, world: World) -> None:
        self._worker, _ = world.worker(PROBE, allowedJobTypes=[PROBE])
        self._operator = world.operator(world.log("calm"))
        self._patience = threading.Event()

    def measure(self) -> list[float]:
        """Time some wake-ups, and let a lease lapse; returns the wake-ups."""
        try:
            with ThreadPoolExecutor(1) as beside:
                wakes = [self._wake(beside) for _ in range(WAKES)]
            self._lapse()
        finally:
            self._worker.close()
            self._operator.close()
        return wakes

    def _create(self) -> str:
        key = str(uuid.uuid4())
        body = {"type": PROBE, "payload": {}, "queue": QUEUE, "idempotencyKey": key}

        def send() -> Answer | None:
            return self._operator.call(
                "create", "/jobs", body, what={}, pick=lambda found: {"id": found["id"]}
            )

        answer = insist(send, self._patience)
        assert answer is not None
        assert answer.ok, answer
        return str(answer.body["id"])

    def _claim(self, lease_s: int) -> tuple[dict[str, Any], float]:
        """Wait for a job; return it, and when it came."""
        body = {"workerId": PROBE, "leaseSeconds": lease_s, "waitSeconds": 10}
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            answer = self._worker.call("wake", "/jobs/claim", body, what={})
            if answer is not None and answer.ok and answer.body["jobs"]:
                return answer.body["jobs"][0], time.monotonic()
        raise AssertionError("the probe was given no job")

    def _wake(self, beside: ThreadPoolExecutor) -> float:
        """Let a claim wait, give it a job, and time the answer; then complete the job."""
        waiting = beside.submit(self._claim, 10)
        # long enough for the claim to have found nothing and to wait
        time.sleep(0.3)
        begun = time.monotonic()
        self._create()
        job, at = waiting.result()
        done = {"workerId": PROBE, "leaseId": job["leaseId"], "result": {}}

        def send() -> Answer | None:
            return self._worker.call(
                "complete", f"/jobs/{job['id']}/complete", done, job=job["id"],
                lease=job["leaseId"], what={"result": {}},
                pick=lambda found: {"status": found["status"]},
            )  # fmt: skip

        insist(send, self._patience)
        return at - begun

    def _lapse(self) -> None:
        """Let a lease lapse in peace; the oracle sees when the ledger ended it."""
        self._create()
        job, _ = self._claim(LAPSE_S)
        mine = {"workerId": PROBE, "leaseId": job["leaseId"], "leaseSeconds": LAPSE_S}
        self._worker.call(
            "heartbeat", f"/jobs/{job['id']}/heartbeat", mine, job=job["id"],
            lease=job["leaseId"], what={"lease_s": LAPSE_S},
        )  # fmt: skip

        def lapsed() -> bool:
            found = self._operator.call("look", f"/jobs/{job['id']}", job=job["id"], what={})
            return found is not None and found.ok and found.body["status"] == "queued"

        until(lapsed, PATIENCE_S, what="the lease has lapsed")
        # its next attempt is half a minute away
        self._operator.call(
            "cancel", f"/jobs/{job['id']}/cancel", {}, job=job["id"], what={},
            pick=lambda found: {"status": found["status"]},
        )  # fmt: skip


def rebuild(world: World) -> Rebuild:
    """Flush the index under load, and time the building of the next."""
    with world.engine().connect() as conn:
        live = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
        jobs = int(conn.execute(sa.text(live)).scalar_one())
    with redis_at(world.places.reservations_url) as client:
        client.flushall()
        tag = f"{{db:{QUEUE}}}:"
        # who finds out, and when, is another question: claims at once, reconcile within 5 s
        assert spin(lambda: bool(client.exists(f"{tag}building", f"{tag}gen")), PATIENCE_S)
        begun = time.monotonic()
        assert spin(lambda: bool(client.exists(f"{tag}gen")), PATIENCE_S)
        return Rebuild(jobs=jobs, seconds=time.monotonic() - begun)
