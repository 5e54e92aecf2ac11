"""How far running jobs are, by their holders' last heartbeats: known to the reservations alone.

What is new of it is told to Celery through the outbox, like every other state: so it never comes
after the job's end, and never over it.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from broker import effects
from broker.clock import Clock
from broker.errors import ReservationsUnavailable, Unavailable
from broker.ledger import batches, outbox
from broker.ledger.engine import Ledger
from broker.records import Job
from broker.reservations.store import Reservations

log = logging.getLogger(__name__)

#: jobs of a queue told of in one transaction
TELL: Final = 200


def with_progress(reservations: Reservations, some: Sequence[Job]) -> list[Job]:
    """Put into jobs that run what their holders last said of their progress; best effort."""
    said: dict[str, str] = {}
    held: dict[str, dict[str, str]] = defaultdict(dict)
    for job in some:
        if job.lease_id is not None:
            held[job.queue][job.id] = job.lease_id
    for queue, leases in held.items():
        try:
            said |= reservations.progress(queue, leases)
        except ReservationsUnavailable as error:
            log.debug("no progress: %s", error, extra={"queue": queue})
    return [
        replace(job, progress=json.loads(said[job.id])) if job.id in said else job for job in some
    ]


def tell_progress(
    ledger: Ledger, reservations: Reservations, queues: Sequence[str], clock: Clock
) -> int:
    """Let Celery know of what is new, up to ``TELL`` jobs a queue; returns how many.

    Raises:
        Unavailable: a store is away; what was not told yet is told later.
    """
    told = 0
    for queue in queues:
        said = reservations.progressed(queue, limit=TELL)
        if not said:
            continue
        try:
            told += _tell(ledger, said, clock)
        except Unavailable:
            reservations.tell_again(queue, list(said))
            raise
    return told


def _tell(ledger: Ledger, said: Mapping[str, tuple[str, str]], clock: Clock) -> int:
    """Tell of those jobs whose lease is still the one under which it was said.

    Their rows are held meanwhile, so whatever ends a lease writes its effects behind these.
    """
    with ledger.write() as conn:
        rows = [
            (job.id, row)
            for job in batches.lock(conn, list(said)).values()
            if job.lease_id is not None and job.lease_id == said[job.id][0]
            for row in effects.progressed(job, json.loads(said[job.id][1]))
        ]
        outbox.insert(conn, rows, clock.now())
    return len(rows)
