"""Who works for us: what the ledger knows of each remote worker, and when it was last seen."""

from __future__ import annotations

from broker.clock import Clock, from_ms, to_ms
from broker.ledger import fleet
from broker.ledger.engine import Ledger
from broker.records import RemoteWorker
from broker.reservations.store import Reservations

#: jobs looked at for one listing
HELD_MAX = 5_000


class Roster:
    """Reads both stores; writes nothing."""

    def __init__(self, ledger: Ledger, reservations: Reservations, *, clock: Clock) -> None:
        """Read these stores."""
        self._ledger = ledger
        self._reservations = reservations
        self._clock = clock

    def workers(self, *, limit: int = 200) -> list[RemoteWorker]:
        """List workers, last seen first; those never seen since the reservations are last.

        Raises:
            Unavailable: a store is away.
        """
        seen_ms = self._reservations.last_seen(limit=limit)
        online = set(self._reservations.online(to_ms(self._clock.now())))
        with self._ledger.read() as conn:
            known = fleet.known_of(conn, list(seen_ms), limit=limit)
            names = [*seen_ms, *(name for name in sorted(known) if name not in seen_ms)][:limit]
            held = fleet.held_by(conn, names, limit=HELD_MAX)
            draining = fleet.draining(conn, names)
        return [
            RemoteWorker(
                worker_id=name,
                online=name in online,
                last_seen_at=from_ms(seen_ms[name]) if name in seen_ms else None,
                first_seen_at=known[name].first_seen_at if name in known else None,
                hello=known[name].hello if name in known else {},
                held=tuple(held.get(name, ())),
                draining=name in draining,
                paused=known[name].paused if name in known else (),
            )
            for name in names
        ]
