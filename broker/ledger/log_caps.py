"""How much a worker may write into a job's log: the only one to know, and to mark what is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from broker import figures
from broker.ledger import events
from broker.records import Job, NewEvent

#: characters of a message
MESSAGE_MAX: Final = 16 * 1024
#: bytes of a payload
PAYLOAD_MAX: Final = 64 * 1024
#: a number no worker gives: the entry that says that the log is full stands once a lease
FULL_SEQ: Final = -1


def trimmed(event: NewEvent) -> NewEvent:
    """Cut what is too large, and say in its place how much is missing."""
    over = len(event.message) - MESSAGE_MAX
    if over > 0:
        figures.log_cut("message")
        kept = event.message[:MESSAGE_MAX]
        event = replace(event, message=f"{kept}… [cut: {over} characters left out]")
    size = 0 if event.payload is None else len(json.dumps(event.payload).encode())
    if size > PAYLOAD_MAX:
        figures.log_cut("payload")
        event = replace(event, payload={"truncated": True, "sizeBytes": size})
    return event


def mark_full(conn: sa.Connection, job: Job, *, most: int, refused: int, now: datetime) -> None:
    """Say in a job's log that it takes no more; a repeat adds nothing."""
    figures.log_cut("entry", refused)
    payload = {"limit": most}
    full = NewEvent(message="Log full", level="warn", payload=payload, worker_seq=FULL_SEQ)
    events.append(conn, job, [full], now)
