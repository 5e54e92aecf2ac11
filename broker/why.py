"""Why a job is not running: its own state, then for each worker the rule that excludes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from broker.catalog import Catalog
from broker.clock import Clock
from broker.ledger import credential_rows, fleet
from broker.ledger.engine import Ledger
from broker.policy import Lane, Policy
from broker.records import Job, RemoteWorker
from broker.roster import Roster
from broker.states import Status
from broker.verdicts import Verdict, judge

#: workers looked at, last seen first
WORKERS_MAX: Final = 200

#: what a credential is called, and what it allows
Allowance = tuple[str, Policy]


@dataclass(frozen=True, slots=True)
class Reason:
    """Something about the job itself."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """One worker, by which credential it comes closest, and what decides."""

    worker_id: str
    last_seen_at: datetime | None
    credential: str | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """Why; ``reasons`` is empty when only workers are missing or at fault."""

    job: Job
    reasons: tuple[Reason, ...]
    workers: tuple[Excluded, ...]


class Why:
    """Reads both stores; writes nothing."""

    def __init__(self, ledger: Ledger, *, catalog: Catalog, roster: Roster, clock: Clock) -> None:
        """Stand on what one process reads by."""
        self._ledger = ledger
        self._catalog = catalog
        self._roster = roster
        self._clock = clock

    def explain(
        self, job_id: str, others: Callable[[], Mapping[str, Sequence[Allowance]]] = dict
    ) -> Answer:
        """Say why a job does not run; ``others`` are allowances that no token of ours carries.

        Raises:
            JobNotFound: there is none.
            Unavailable: a store is away.
        """
        job = self._catalog.get(job_id)
        now = self._clock.now()
        reasons = tuple(_reasons(job, now))
        if job.status is not Status.QUEUED:
            return Answer(job, reasons, ())
        live = [one for one in self._roster.workers(limit=WORKERS_MAX) if one.online]
        with self._ledger.read() as conn:
            names = [one.worker_id for one in live]
            found = credential_rows.good_of(conn, names, now)
            draining = fleet.draining(conn, names)
        allowances = {name: list(some) for name, some in others().items()}
        for one in found:
            allowances.setdefault(one.worker_id or "", []).append((one.id, one.policy))
        lane = Lane.from_spec(job.lane_spec)
        workers = tuple(
            closest(
                one,
                lane,
                allowances.get(one.worker_id, ()),
                drained=one.worker_id in draining,
            )
            for one in live
        )
        if not workers:
            reasons += (Reason("no_worker", "no worker was seen within a minute"),)
        return Answer(job, reasons, workers)


def closest(
    worker: RemoteWorker, lane: Lane, allowances: Sequence[Allowance], *, drained: bool
) -> Excluded:
    """Judge a worker by the best of its credentials."""
    asked = _said(worker.hello, "types") or None
    judged = [
        (
            judge(
                policy,
                lane,
                types=asked,
                capabilities=_said(worker.hello, "capabilities"),
                held=len(worker.held),
            ),
            name,
        )
        for name, policy in allowances
    ]
    if not judged:
        none = Verdict(allowed=False, rule="credential", message="the worker has none that is good")
        return Excluded(worker.worker_id, worker.last_seen_at, None, none)
    if drained:
        told = Verdict(allowed=False, rule="drain", message="the worker was told to claim no more")
        return Excluded(worker.worker_id, worker.last_seen_at, None, told)
    if lane.queue in worker.paused:
        message = f"the worker was told to claim nothing from {lane.queue}"
        told = Verdict(allowed=False, rule="paused", message=message)
        return Excluded(worker.worker_id, worker.last_seen_at, None, told)
    verdict, name = max(judged, key=lambda one: one[0].allowed)
    return Excluded(worker.worker_id, worker.last_seen_at, name, verdict)


def _reasons(job: Job, now: datetime) -> list[Reason]:
    if job.status is Status.RUNNING:
        return [Reason("running", f"{job.claimed_by} runs it")]
    if job.status is not Status.QUEUED:
        return [Reason("ended", f"it is {job.status}" + (f": {job.reason}" if job.reason else ""))]
    found = []
    if job.next_attempt_at is not None and job.next_attempt_at > now:
        until = job.next_attempt_at.isoformat(timespec="seconds").replace("+00:00", "Z")
        found.append(Reason("scheduled", f"it is not to start before {until}"))
    if job.expires_at is not None and job.expires_at <= now:
        found.append(Reason("expired", "its expiry has passed; the next sweep ends it"))
    return found


def _said(hello: Mapping[str, Any], name: str) -> tuple[str, ...]:
    said = hello.get(name)
    return tuple(said) if isinstance(said, list) else ()
