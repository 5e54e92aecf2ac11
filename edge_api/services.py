"""The only one to know what an edge is made of, and where a request finds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

from flask import current_app

from broker.clock import Clock
from broker.errors import ConfigurationError
from broker.files import ArtifactStore
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.reservations.store import Reservations
from broker.storage import artifact_store
from broker.why import Why
from edge_api.pauses import Pauses
from edge_api.presence import Presence
from edge_api.rates import Rates
from edge_api.refusals import Refusals
from edge_api.settings import EdgeSettings
from edge_api.shared_rates import SharedRates
from edge_api.waiting import Waiting

if TYPE_CHECKING:
    from edge_api.oidc import Oidc

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
    pauses: Pauses
    rates: Rates
    waiting: Waiting
    refusals: Refusals
    why: Why
    #: None when no issuer is believed
    oidc: Oidc | None = None

    @classmethod
    def connect(cls, settings: EdgeSettings) -> Self:
        """Build them on the stores that the settings name; nothing is reached before it is used."""
        stores = settings.stores
        ledger = Ledger(stores.database_url, synchronous=stores.sqlite_synchronous)
        reservations = Reservations.connect(stores.reservations_url)
        clock = Clock(reservations.clock_ms, else_ms=ledger.clock_ms)
        queue = JobQueue(ledger, reservations, clock=clock, settings=settings.queue)
        presence = Presence(queue.seen)
        return cls(
            settings=settings,
            queue=queue,
            credentials=Credentials(
                ledger, on_revoke=reservations.revoke, is_revoked=reservations.is_revoked
            ),
            artifacts=artifact_store(stores),
            clock=clock,
            presence=presence,
            pauses=Pauses(presence.told, queue.orders.read),
            rates=Rates(
                calls_per_s=settings.calls_per_s,
                failures_per_min=settings.failures_per_min,
                shared=SharedRates(reservations.tally, timer=lambda: clock.now().timestamp()),
            ),
            waiting=Waiting(
                queue,
                wakes=reservations.wakes,
                lane=reservations.lane,
                seen=presence.seen,
                learn=presence.renew,
                drains=presence.drains,
                capacity=settings.waits_max,
            ),
            refusals=Refusals(ledger),
            why=Why(ledger, catalog=queue.catalog, roster=queue.roster, clock=clock),
            oidc=None if settings.oidc_config is None else _oidc(settings.oidc_config),
        )

    def close(self) -> None:
        """End waiting calls and let the stores go."""
        self.waiting.join()
        self.refusals.close(self.clock.now())
        self.queue.reservations.close()
        self.queue.ledger.close()


def _oidc(path: Path) -> Oidc:
    try:
        from edge_api.oidc import Oidc  # noqa: PLC0415  an extra, for those who ask for it
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"DRAWBRIDGE_OIDC_CONFIG needs {error.name}; "
            "run: pip install 'celery-drawbridge[edge,oidc]'"
        ) from None
    return Oidc(path)


def current_services() -> Services:
    """Return the services of the app that serves this request."""
    return cast(Services, current_app.extensions[EXTENSION])
