"""The order of writes of a good end, of one job or of several at once.

First the ledger, in one transaction with its events and effects, then the reservations; that step
is best effort, and no end needs Redis.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import cast

from broker.clock import Clock
from broker.errors import DrawbridgeError, JobStateConflict
from broker.indexing import Indexer
from broker.ledger import at_once, batches, holders, transitions
from broker.ledger.engine import Ledger
from broker.records import Completion, Holder, Job, Json


class Completing:
    """Good ends; threads may share one."""

    def __init__(self, ledger: Ledger, *, index: Indexer, clock: Clock) -> None:
        self.ledger = ledger
        self.index = index
        self.clock = clock

    def complete(
        self,
        job_id: str,
        holder: Holder,
        *,
        result: Json = None,
        result_summary: str | None = None,
    ) -> Job:
        """End a lease with success; the same again under its lease id gives the same job."""
        said = Completion(
            job_id=job_id, lease_id=holder.lease_id, result=result, result_summary=result_summary
        )
        digest = _digest(said, holder.worker_id)
        now = self.clock.now()
        endings = [at_once.Ending(said, digest)]
        ended = at_once.complete(self.ledger, holder.worker_id, endings, now=now).get(job_id)
        if ended is None:
            with self.ledger.write() as conn:
                ended = transitions.complete(
                    conn, job_id, holder, result=result, result_summary=result_summary,
                    digest=digest, now=now,
                )  # fmt: skip
                if ended is None:
                    job, repeated = holders.held(conn, job_id, holder, digest=digest)
                    if not repeated:  # nobody gets a lease that was not granted a moment ago
                        raise JobStateConflict
                    return job
        self.index.put([ended])
        return ended

    def complete_many(
        self, worker_id: str, completions: Sequence[Completion]
    ) -> list[Job | DrawbridgeError]:
        """End several leases with success, in one transaction; each is answered by itself.

        One that is refused keeps no other from ending; again gives the same answers.
        """
        now = self.clock.now()
        endings = [at_once.Ending(one, _digest(one, worker_id)) for one in completions]
        done = at_once.complete(self.ledger, worker_id, endings, now=now)
        outcomes: dict[str, Job | DrawbridgeError | batches.Ending] = {}
        left = [one for one in endings if one.said.job_id not in done]
        if left:
            with self.ledger.write() as conn:
                found = batches.lock(conn, [one.said.job_id for one in left])
                for one in left:
                    outcomes[one.said.job_id] = _checked(found, one, worker_id)
                ending = [one for one in outcomes.values() if isinstance(one, batches.Ending)]
                done |= batches.complete(conn, ending, now=now)
        self.index.put(done.values())
        answers = outcomes | done
        return [cast(Job | DrawbridgeError, answers[one.job_id]) for one in completions]


def _checked(
    found: Mapping[str, Job], ending: at_once.Ending, worker_id: str
) -> batches.Ending | Job | DrawbridgeError:
    """Return what is to end; a job that has ended by this very call, or why it must not."""
    said = ending.said
    holder = Holder(worker_id=worker_id, lease_id=said.lease_id)
    try:
        job, repeated = holders.answered(found.get(said.job_id), holder, digest=ending.digest)
    except DrawbridgeError as error:
        return error
    return job if repeated else batches.Ending(job, said.result, said.result_summary, ending.digest)


def _digest(said: Completion, worker_id: str) -> str:
    holder = Holder(worker_id=worker_id, lease_id=said.lease_id)
    return digest_of("complete", holder, said.result, said.result_summary)


def digest_of(call: str, holder: Holder, *said: Json) -> str:
    """Return what makes two terminal calls the same one."""
    text = json.dumps([call, holder.worker_id, *said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
