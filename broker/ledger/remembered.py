"""The only one to know what a process may still believe of credentials, and for how long."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cachetools import TTLCache

from broker.credential import Credential

#: how old a belief may be while the ledger answers; so long a revocation may take
FRESH_S: Final = 5.0
#: how old word may be that nobody has told of a revocation: asking costs a way to Redis
TOLD_S: Final = 0.5
#: how long a credential that was valid serves heartbeats while the ledger is away (decision 23)
STALE_S: Final = 900.0
#: a ledger that is away is asked again after this, by one request at a time
PROBE_S: Final = 5.0
#: how exact ``last_used_at`` is
USED_EVERY_S: Final = 60.0
#: credentials one process remembers
REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Known:
    """A credential, and what its secret hashes to."""

    credential: Credential
    secret_sha256: str = field(repr=False)


class Remembered:
    """What one process knows of credentials; safe to share between threads."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._fresh: TTLCache[str, Known] = TTLCache(REMEMBERED, FRESH_S, timer)
        self._valid: TTLCache[str, Known] = TTLCache(REMEMBERED, STALE_S, timer)
        self._used: TTLCache[str, bool] = TTLCache(REMEMBERED, USED_EVERY_S, timer)
        self._unrevoked: TTLCache[str, bool] = TTLCache(REMEMBERED, TOLD_S, timer)
        self._probe_at: float | None = None

    def fresh(self, token_id: str) -> Known | None:
        """Return what the ledger said a moment ago."""
        with self._lock:
            return self._fresh.get(token_id)

    def stale(self, token_id: str) -> Known | None:
        """Return a credential that was valid when the ledger last answered, marked as stale."""
        with self._lock:
            known = self._valid.get(token_id)
        if known is None:
            return None
        return dataclasses.replace(
            known, credential=dataclasses.replace(known.credential, stale=True)
        )

    def may_ask(self) -> bool:
        """Tell whether to ask the ledger; while it is away asking costs seconds, so one does."""
        with self._lock:
            if self._probe_at is None:
                return True
            if self._timer() < self._probe_at:
                return False
            self._probe_at = self._timer() + PROBE_S
            return True

    def ledger_away(self) -> None:
        """Take note that the ledger did not answer."""
        with self._lock:
            self._probe_at = self._timer() + PROBE_S

    def learn(self, token_id: str, known: Known | None, *, valid: bool) -> None:
        """Take note of what the ledger said; nothing is kept of ids it does not have."""
        with self._lock:
            self._probe_at = None
            if known is not None:
                self._fresh[token_id] = known
            if known is not None and valid:
                self._valid[token_id] = known
            else:
                self._valid.pop(token_id, None)

    def use_is_due(self, token_id: str) -> bool:
        """Tell once a minute that a credential's use is to be noted."""
        with self._lock:
            due = token_id not in self._used
            if due:
                self._used[token_id] = True
            return due

    def unrevoked(self, token_id: str) -> bool:
        """Tell whether nobody had told of a revocation a moment ago."""
        with self._lock:
            return token_id in self._unrevoked

    def note_unrevoked(self, token_id: str) -> None:
        """Take note that nobody has told of a revocation."""
        with self._lock:
            self._unrevoked[token_id] = True

    def forget(self, token_id: str) -> None:
        """Believe nothing of a credential any more."""
        with self._lock:
            self._unrevoked.pop(token_id, None)
            self._fresh.pop(token_id, None)
            self._valid.pop(token_id, None)
