"""Who may speak of a job: the one place that tells a holder from a stranger and from a repeat."""

from __future__ import annotations

import sqlalchemy as sa

from broker.errors import JobNotFound, JobStateConflict, LeaseLost, OwnershipMismatch
from broker.ledger.jobs import get
from broker.records import Holder, Job
from broker.states import Status


def held(
    conn: sa.Connection, job_id: str, holder: Holder, *, digest: str | None = None
) -> tuple[Job, bool]:
    """Lock a job for its holder; True when this very call has already ended its lease.

    The order of the checks is decision 6: repeat, existence, state, owner.

    Raises:
        JobNotFound: there is none.
        JobStateConflict: it is not running.
        OwnershipMismatch: another worker runs it.
        LeaseLost: this worker runs it under a newer lease.
    """
    return answered(get(conn, job_id, lock=True), holder, digest=digest)


def answered(job: Job | None, holder: Holder, *, digest: str | None) -> tuple[Job, bool]:
    """Check a job whose row is locked for its holder; answers and raises as ``held`` says."""
    if job is None:
        raise JobNotFound
    repeats = holder.lease_id is not None and digest is not None
    if repeats and (job.last_lease_id, job.last_digest) == (holder.lease_id, digest):
        return job, True
    check_holder(job, holder)
    return job, False


def check_holder(job: Job, holder: Holder) -> None:
    """Refuse whoever does not hold the job; raises as ``held`` says."""
    if job.status is not Status.RUNNING:
        raise JobStateConflict(f"The job is {job.status}, not running")
    if job.claimed_by != holder.worker_id:
        raise OwnershipMismatch
    if holder.lease_id is not None and holder.lease_id != job.lease_id:
        raise LeaseLost
