"""The only one to decide which refused credentials the audit gets, and to count the others.

A record costs a write, and anybody on the internet can ask for one: the same refusal is recorded
once a minute, and all of them together no faster than the audit shall grow. What is left out is
counted, and the number stands in the next record.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cachetools import TTLCache

from broker.errors import LedgerUnavailable
from broker.ledger import audit
from broker.ledger.audit import Act
from broker.ledger.engine import Ledger

logger = logging.getLogger(__name__)

#: records at once, and how many seconds one more takes: some 4 MB a day at most
BURST: Final = 60
EVERY_S: Final = 10.0
#: the same refusal is recorded again after this
SAME_S: Final = 60.0
#: kinds of refusal remembered
KINDS_MAX: Final = 10_000
#: nobody who is refused waits longer for his record
PATIENCE_S: Final = 0.05
#: a ledger that did not take a record is left alone for as long
AWAY_S: Final = 30.0


class Refusals:
    """What one edge process records of refused credentials; safe to share between threads."""

    def __init__(self, ledger: Ledger, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._timer = timer
        self._lock = threading.Lock()
        self._same: TTLCache[tuple[str, str, str], bool] = TTLCache(KINDS_MAX, SAME_S, timer)
        self._tokens = float(BURST)
        self._filled_at = timer()
        self._away_until = timer()
        self._left_out = 0

    @property
    def left_out(self) -> int:
        """How many wait to be told of by number."""
        return self._left_out

    def note(
        self, why: str, *, credential: str | None, source: str | None, route: str, now: datetime
    ) -> None:
        """Record a refusal, or count it; never raises, and never waits for long."""
        with self._lock:
            if not self._may_record((why, credential or "", source or "")):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        detail = {"why": why, "route": route, "leftOut": left_out}
        act = Act(
            action="credential.refused",
            actor=credential or "unknown",
            source=source,
            object=credential,
            detail=detail,
        )
        self._write(act, left_out, now)

    def close(self, now: datetime) -> None:
        """Tell how many were left out since the last record; may come twice."""
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            act = Act(action="credential.refused", actor="unknown", detail={"leftOut": left_out})
            self._write(act, left_out, now)

    def _write(self, act: Act, left_out: int, now: datetime) -> None:
        try:
            with self._ledger.write(patience_s=PATIENCE_S) as connection:
                audit.append(connection, act, now)
        except LedgerUnavailable as error:
            logger.debug("refusal not recorded: %s", error)
            with self._lock:
                self._left_out += left_out + 1
                self._away_until = self._timer() + AWAY_S

    def _may_record(self, same: tuple[str, str, str]) -> bool:
        now = self._timer()
        self._tokens = min(float(BURST), self._tokens + (now - self._filled_at) / EVERY_S)
        self._filled_at = now
        if same in self._same or self._tokens < 1 or now < self._away_until:
            return False
        self._same[same] = True
        self._tokens -= 1
        return True
