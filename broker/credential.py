"""A token as everybody but its holder sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broker.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A token as stored: its id and what it allows, never its secret."""

    id: str
    #: worker, operator or producer
    kind: str
    #: the worker's name; None for operators and producers
    worker_id: str | None
    description: str | None
    policy: Policy
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    #: the token that took this one's place
    rotated_to: str | None = None
    #: answered from memory because the ledger is away: good for heartbeats only (decision 23)
    stale: bool = False
