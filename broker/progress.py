"""How far running jobs are, by their holders' last heartbeats: in the reservations alone."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from broker.errors import ReservationsUnavailable
from broker.records import Job
from broker.reservations.store import Reservations

log = logging.getLogger(__name__)


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
