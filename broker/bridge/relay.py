"""How the outbox is emptied: taken in order per job, told to Celery, marked.

What may be told twice is marked together; every other row by itself, so that a crash repeats at
most one of them. A row that its store refuses is tried again ever later and parked in the end; an
outage of the result backend or of the Celery broker counts for no row's tries.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from broker import figures
from broker.bridge.announcer import Announcer
from broker.bridge.loops import is_outage
from broker.bridge.settle import BACKEND_KINDS, REPEATABLE, Settler
from broker.clock import Clock
from broker.ledger import outbox
from broker.ledger.engine import Ledger
from broker.records import Effect

logger = logging.getLogger(__name__)

#: effects taken at once; what is told within half a lock is surely told by one relay
TAKE: Final = 200
LOCK_S: Final = 60.0
#: between looks at an empty outbox; whoever ends a job wakes the loop before
IDLE_S: Final = 0.1
#: between looks when every row waits for its time
WAITING_S: Final = 0.25
#: how long rows wait for a store that is away
OUTAGE_S: Final = 2.0


class Relay:
    """Empties the outbox; any number may run, in any number of bridges."""

    def __init__(
        self, ledger: Ledger, settler: Settler, announcer: Announcer, *, clock: Clock, owner: str
    ) -> None:
        """Relay from the ledger to Celery, under a name no other relay has."""
        self._ledger = ledger
        self._settler = settler
        self._announcer = announcer
        self._clock = clock
        self._owner = owner
        #: rows told so far, for whoever measures
        self.told = 0

    def behind_s(self) -> float:
        """Return for how long the oldest row waits."""
        with self._ledger.read() as conn:
            since = outbox.oldest(conn)
        return 0.0 if since is None else (self._clock.now() - since).total_seconds()

    def step(self) -> float:
        """Relay one batch; returns how long to wait before the next."""
        with self._ledger.read() as conn:
            if outbox.oldest(conn) is None:
                return IDLE_S
        with self._ledger.write() as conn:
            taken = outbox.take(
                conn, owner=self._owner, now=self._clock.now(), limit=TAKE, lock_s=LOCK_S
            )
        if not taken:
            return WAITING_S
        with self._ledger.read() as conn:
            known = outbox.context(conn, list({effect.job_id for effect in taken}))
        self._relay(taken, known)
        return 0.0

    def _relay(self, taken: Sequence[Effect], known: dict[str, tuple[Any, Any]]) -> None:
        batch = _Batch()
        started = time.monotonic()
        outdated = _outdated(taken)
        for effect in taken:
            if batch.waits(effect) or time.monotonic() - started > LOCK_S / 2:
                batch.put_back(effect)
                continue
            if effect.seq in outdated:
                batch.told.append(effect)
                continue
            try:
                self._settler.settle(effect, *known[effect.job_id])
            except Exception as error:  # noqa: BLE001  one row's trouble is not its neighbours'
                batch.failed(effect, error)
                self._tell(effect, error)
                continue
            if effect.kind in REPEATABLE:
                batch.told.append(effect)
            else:
                self._mark([effect])
        self._flush(batch)
        self._mark(batch.told)
        self._return(batch)

    def _flush(self, batch: _Batch) -> None:
        try:
            self._announcer.flush()
        except Exception as error:  # noqa: BLE001  the other rows of the batch are told all the same
            unsent = [effect for effect in batch.told if effect.kind == "event"]
            batch.told = [effect for effect in batch.told if effect.kind != "event"]
            for effect in unsent:
                batch.failed(effect, error)
            if unsent:
                self._tell(unsent[0], error)

    def _mark(self, effects: Sequence[Effect]) -> None:
        seqs = [effect.seq for effect in effects]
        if seqs:
            with self._ledger.write() as conn:
                outbox.done(conn, seqs, now=self._clock.now())
            self.told += len(seqs)
            figures.told(effect.kind for effect in effects)

    def _return(self, batch: _Batch) -> None:
        if not (batch.refused or batch.unreached or batch.untried):
            return
        now = self._clock.now()
        with self._ledger.write() as conn:
            for effect, error in batch.refused:
                if not outbox.retry(conn, effect.seq, error=error, now=now):
                    figures.parked(effect.kind)
                    logger.error(
                        "parked effect %d (%s) of job %s: %s",
                        effect.seq, effect.kind, effect.job_id, error,
                        extra={"action": "park", "job_id": effect.job_id},
                    )  # fmt: skip
            outbox.free(conn, [effect.seq for effect in batch.untried])
            until = now + timedelta(seconds=OUTAGE_S)
            outbox.postpone(conn, [effect.seq for effect in batch.unreached], until=until)

    def _tell(self, effect: Effect, error: Exception) -> None:
        logger.warning(
            "effect %d (%s) of job %s must wait: %r",
            effect.seq, effect.kind, effect.job_id, error,
            extra={"action": "settle", "job_id": effect.job_id},
        )  # fmt: skip


def _outdated(taken: Sequence[Effect]) -> set[int]:
    """Name the states that a later row of the same job, in the same take, would overwrite."""
    latest: dict[str, int] = {}
    outdated: set[int] = set()
    for effect in taken:
        if effect.kind in {"state", "store"}:
            if effect.job_id in latest:
                outdated.add(latest[effect.job_id])
            latest[effect.job_id] = effect.seq
    return outdated


class _Batch:
    """What became of the rows of one take."""

    def __init__(self) -> None:
        self.told: list[Effect] = []
        #: refused by their store, each with why; a try is counted
        self.refused: list[tuple[Effect, str]] = []
        #: their store is away
        self.unreached: list[Effect] = []
        #: behind an earlier row of their job, or out of time
        self.untried: list[Effect] = []
        self._jobs: set[str] = set()
        self._away: set[bool] = set()

    def waits(self, effect: Effect) -> bool:
        """Tell whether an earlier row of the job, or its store, keeps it from being told."""
        return effect.job_id in self._jobs or (effect.kind in BACKEND_KINDS) in self._away

    def put_back(self, effect: Effect) -> None:
        """Leave a row for a later take, and all later rows of its job with it."""
        behind = effect.job_id in self._jobs
        (self.untried if behind or not self._away else self.unreached).append(effect)
        self._jobs.add(effect.job_id)

    def failed(self, effect: Effect, error: Exception) -> None:
        """Remember why a row was not told."""
        self._jobs.add(effect.job_id)
        if is_outage(error):
            self._away.add(effect.kind in BACKEND_KINDS)
            self.unreached.append(effect)
        else:
            self.refused.append((effect, f"{type(error).__name__}: {error}"))
