"""Remote workers over plain HTTP: honest ones, slow ones, silent ones, and ghosts that come back.

A ghost repeats old calls under a lease that it has lost or ended; the edge must refuse it.
"""

import hashlib
import random
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.edge import Answer, Edge, insist

#: What a worker does with a job, and how often out of a hundred, while faults go on.
HABITS: Final = {
    "complete": 52,
    "long": 12,
    "fail_retry": 8,
    "fail": 6,
    "release": 5,
    "silent": 4,
    "late": 4,
    "untaken": 3,
    "ghost": 6,
}
#: Habits that leave a job waiting for its lease to lapse, half a minute and more.
SLOW_TO_HEAL: Final = frozenset({"silent", "late", "untaken"})
#: What honest workers do; they end what the others left.
HONEST: Final = ("complete", "complete", "complete", "long")
GRAVES: Final = 12


@dataclass
class Mood:
    """How all workers behave just now; the run changes it."""

    #: Whether jobs may be left to lapse.
    silent: bool = True
    #: Whether anything but good work is done.
    wild: bool = True
    stopping: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One worker: a thread that claims, works, and now and then haunts."""

    def __init__(
        self, edge: Edge, worker_id: str, *, seed: int, mood: Mood, lease_s: int, max_jobs: int = 1
    ) -> None:
        self.worker_id = worker_id
        self._edge = edge
        self._dice = random.Random(f"{seed}:{worker_id}")
        self._mood = mood
        self._lease_s = lease_s
        self._max_jobs = max_jobs
        #: Jobs whose leases it has no more, or should not have.
        self._graves: deque[tuple[float, dict[str, Any]]] = deque(maxlen=GRAVES)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to claim."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, after the mood has said stop."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
        self._edge.close()

    def _run(self) -> None:
        while not self._mood.stopping.is_set():
            self._haunt()
            for job in self._claim():
                self._work(job)

    # -- calls -------------------------------------------------------------------------------

    def _claim(self) -> list[dict[str, Any]]:
        key = str(uuid.UUID(int=self._dice.getrandbits(128)))
        body = {"workerId": self.worker_id, "leaseSeconds": self._lease_s, "waitSeconds": 2}

        def send() -> Answer | None:
            return self._edge.call(
                "claim", "/jobs/claim", body | {"maxJobs": self._max_jobs},
                what={"key": key, "lease_s": self._lease_s},
                pick=lambda found: {"jobs": [_granted(one) for one in found["jobs"]]},
                headers={"Idempotency-Key": key},
            )  # fmt: skip

        # beyond its lease a key is forgotten
        answer = insist(send, self._mood.stopping, patience_s=self._lease_s / 2)
        if answer is None or not answer.ok:
            # one that was shut out goes on knocking, but not as hard
            self._mood.stopping.wait(0.2 if answer is None else 1.0)
            return []
        if answer.body["jobs"] and self._dice.random() < 0.05:
            send()
        return list(answer.body["jobs"])

    def _on(self, op: str, job: dict[str, Any], body: dict[str, Any], **what: Any) -> Answer | None:
        """Make one call on a job, under its lease."""
        path = {"ack": "cancel/ack"}.get(op, op)
        return self._edge.call(
            op, f"/jobs/{job['id']}/{path}",
            body | {"workerId": self.worker_id, "leaseId": job["leaseId"]},
            job=job["id"], lease=job["leaseId"], what=what, pick=lambda found: _kept(op, found),
        )  # fmt: skip

    def _beat(self, job: dict[str, Any]) -> Answer | None:
        return self._on("heartbeat", job, {"leaseSeconds": self._lease_s}, lease_s=self._lease_s)

    def _complete(self, job: dict[str, Any], result: Any) -> Answer | None:
        return self._on("complete", job, {"result": result}, result=result)

    def _fail(self, job: dict[str, Any], *, retryable: bool) -> Answer | None:
        body: dict[str, Any] = {"errorMessage": "chaos", "retryable": retryable}
        if retryable:
            body["retryAfterSeconds"] = 0.2
        return self._on("fail", job, body, retryable=retryable)

    def _say(self, job: dict[str, Any], first: int, count: int) -> Answer | None:
        seqs = list(range(first, first + count))
        entries = [{"message": f"step {seq}", "workerSeq": seq} for seq in seqs]
        return self._on("events", job, {"events": entries}, seqs=seqs)

    def _upload(self, job: dict[str, Any]) -> dict[str, str] | None:
        """Upload a file, twice now and then; return what a result may name."""
        data = self._dice.randbytes(self._dice.choice((10, 5_000, 80_000)))
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        form = {
            "workerId": self.worker_id, "leaseId": job["leaseId"], "name": "out.bin",
            "digest": digest,
        }  # fmt: skip

        def send() -> Answer | None:
            return self._edge.call(
                "upload", f"/jobs/{job['id']}/artifacts/upload",
                job=job["id"], lease=job["leaseId"], what={"name": "out.bin", "digest": digest},
                pick=lambda found: {"ids": {"out.bin": found["id"]}},
                data=form, files={"file": ("out.bin", data)},
            )  # fmt: skip

        answer = insist(send, self._mood.stopping)
        if answer is None or not answer.ok:
            return None
        if self._dice.random() < 0.3:
            send()
        return {"name": "out.bin", "digest": digest}

    # -- habits ------------------------------------------------------------------------------

    def _work(self, job: dict[str, Any]) -> None:
        habit = self._dice.choice(HONEST)
        if self._mood.wild:
            habit = self._dice.choices(list(HABITS), weights=list(HABITS.values()))[0]
        if habit in SLOW_TO_HEAL and not self._mood.silent:
            habit = "complete"
        if habit == "untaken":
            self._bury(job, self._lease_s)
            return
        beat = insist(lambda: self._beat(job), self._mood.stopping)
        if beat is None or not beat.ok:
            self._bury(job, 0)
            return
        if beat.body["cancelRequestedAt"] is not None and habit != "complete":
            insist(lambda: self._on("ack", job, {}), self._mood.stopping)
            return
        getattr(self, f"_do_{habit}")(job)

    def _do_complete(self, job: dict[str, Any]) -> None:
        result: dict[str, Any] = {"by": job["fence"], "of": job["id"]}
        if self._dice.random() < 0.3:
            insist(lambda: self._say(job, 0, 3), self._mood.stopping)
            if self._dice.random() < 0.4:
                self._say(job, 1, 4)
        if self._dice.random() < 0.15:
            artifact = self._upload(job)
            result |= {"artifact": artifact} if artifact else {}
        self._mood.stopping.wait(self._dice.uniform(0.0, 0.2))
        answer = insist(lambda: self._complete(job, result), self._mood.stopping)
        if answer is not None and answer.ok and self._dice.random() < 0.2:
            self._complete(job, result)
        self._bury(job, 0)

    def _do_long(self, job: dict[str, Any]) -> None:
        for _ in range(self._dice.randrange(2, 6)):
            self._mood.stopping.wait(self._lease_s / 6)
            beat = insist(lambda: self._beat(job), self._mood.stopping)
            if beat is None or not beat.ok:
                self._bury(job, 0)
                return
            if beat.body["cancelRequestedAt"] is not None:
                insist(lambda: self._on("ack", job, {}), self._mood.stopping)
                self._bury(job, 0)
                return
        self._do_complete(job)

    def _do_fail_retry(self, job: dict[str, Any]) -> None:
        insist(lambda: self._fail(job, retryable=True), self._mood.stopping)
        self._bury(job, 0)

    def _do_fail(self, job: dict[str, Any]) -> None:
        insist(lambda: self._fail(job, retryable=False), self._mood.stopping)
        self._bury(job, 0)

    def _do_release(self, job: dict[str, Any]) -> None:
        insist(lambda: self._on("release", job, {}), self._mood.stopping)
        self._bury(job, 0)

    def _do_silent(self, job: dict[str, Any]) -> None:
        self._bury(job, self._lease_s + self._dice.uniform(0, 8))

    def _do_late(self, job: dict[str, Any]) -> None:
        """Come back a moment before or after the lease's end."""
        self._mood.stopping.wait(self._lease_s * self._dice.uniform(0.9, 1.3))
        self._beat(job)
        self._do_complete(job)

    def _do_ghost(self, job: dict[str, Any]) -> None:
        """End a lease and go on as if it had not ended."""
        self._do_release(job) if self._dice.random() < 0.5 else self._do_fail_retry(job)
        self._curse(job)

    # -- ghosts ------------------------------------------------------------------------------

    def _bury(self, job: dict[str, Any], after_s: float) -> None:
        self._graves.append((time.monotonic() + after_s, job))

    def _haunt(self) -> None:
        """Repeat old calls under an old lease, now and then."""
        now = time.monotonic()
        ripe = [grave for grave in self._graves if grave[0] <= now]
        if ripe and self._dice.random() < 0.4:
            grave = self._dice.choice(ripe)
            self._graves.remove(grave)
            self._curse(grave[1])

    def _curse(self, job: dict[str, Any]) -> None:
        """Try one of all that only a holder may do; once, since a ghost has no patience."""
        kind = self._dice.randrange(6)
        if kind == 0:
            self._beat(job)
        elif kind == 1:
            self._complete(job, {"by": "a ghost", "of": job["id"]})
        elif kind == 2:
            self._fail(job, retryable=self._dice.random() < 0.5)
        elif kind == 3:
            self._say(job, 1_000, 1)
        elif kind == 4:
            self._on("release", job, {})
        else:
            self._on("ack", job, {})


def _granted(job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "lease": job["leaseId"], "fence": job["fence"]}


def _kept(op: str, found: Any) -> dict[str, Any]:
    if op == "events":
        return {"ids": {str(one["seq"]): one["id"] for one in found["items"]}}
    return {"status": found["status"]}
