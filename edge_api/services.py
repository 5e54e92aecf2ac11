"""The only one to know what an edge is made of, and where a request finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, cast

from flask import current_app

from broker.clock import Clock
from broker.files import ArtifactStore
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.reservations.store import Reservations
from edge_api.presence import Presence
from edge_api.settings import EdgeSettings
from edge_api.waiting import Waiting

EXTENSION: Final = "drawbridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the views call."""

    settings: EdgeSettings
    queue: JobQueue
    credentials: Credentials
    artifacts: ArtifactStore
    clock: Clock
    presence: Presence
    waiting: Waiting

    @classmethod
    def connect(cls, settings: EdgeSettings) -> Self:
        """Build them on the stores that the settings name; nothing is reached before it is used."""
        stores = settings.stores
        ledger = Ledger(stores.database_url, synchronous=stores.sqlite_synchronous)
        reservations = Reservations.connect(stores.reservations_url)
        clock = Clock(reservations.clock_ms)
        queue = JobQueue(ledger, reservations, clock=clock, settings=settings.queue)
        presence = Presence(queue.seen)
        return cls(
            settings=settings,
            queue=queue,
            credentials=Credentials(
                ledger, on_revoke=reservations.revoke, is_revoked=reservations.is_revoked
            ),
            artifacts=ArtifactStore(stores.artifacts_dir),
            clock=clock,
            presence=presence,
            waiting=Waiting(
                queue,
                wakes=reservations.wakes,
                lane=reservations.lane,
                seen=presence.seen,
                learn=presence.renew,
                drains=presence.drains,
                capacity=settings.waits_max,
            ),
        )

    def close(self) -> None:
        """End waiting calls and let the stores go."""
        self.waiting.join()
        self.queue.reservations.close()
        self.queue.ledger.close()


def current_services() -> Services:
    """Return the services of the app that serves this request."""
    return cast(Services, current_app.extensions[EXTENSION])
