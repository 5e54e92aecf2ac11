"""The only one to know the audit: who did what to what, each record chained to the one before.

A record's digest is of its own words and of the record before; the head remembers the last one. So
what is changed, taken out or put elsewhere afterwards shows. Whoever may write every table could
chain it all anew; against that a digest helps that somebody noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from broker.ledger.models import AuditHeadRow, AuditRow
from broker.records import Json

rows: Final[sa.Table] = AuditRow.__table__  # type: ignore[assignment]
head: Final[sa.Table] = AuditHeadRow.__table__  # type: ignore[assignment]

#: what the first record is chained to
START: Final = "0" * 64
#: records read at once
PAGE: Final = 1000
#: faults told of; the first one tells most
FAULTS_MAX: Final = 20
_WORD_MAX: Final = 255
_HASHED: Final = ("previous", "seq", "at", "action", "actor", "source", "object", "detail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What was done; ``detail`` holds nothing secret."""

    action: str
    #: id of a credential, ``local``, or ``cli``
    actor: str
    #: address of the caller, or the user on this machine
    source: str | None = None
    #: id of what it was done to
    object: str | None = None
    detail: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An act with its place in the chain; ``at`` is UTC in ISO 8601."""

    seq: int
    at: str
    act: Act
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a walk along the chain found; ``head`` is worth noting elsewhere."""

    records: int
    head: str
    faults: tuple[str, ...]


def append(conn: sa.Connection, act: Act, now: datetime) -> None:
    """Add a record in the transaction of the act.

    The head's row stays locked to the end of it: let this be the transaction's last step, so that
    nobody waits for a lock while holding this one.
    """
    last = conn.execute(sa.select(head).where(head.c.id == 1).with_for_update()).one()
    seq = last.seq + 1
    values = {
        "seq": seq, "at": _moment(now), "action": act.action, "actor": act.actor[:_WORD_MAX],
        "source": act.source, "object": act.object and act.object[:_WORD_MAX],
        "detail": json.dumps(dict(act.detail), sort_keys=True), "previous": last.digest,
    }  # fmt: skip
    digest = _digest(values)
    conn.execute(rows.insert().values({**values, "digest": digest}))
    conn.execute(head.update().where(head.c.id == 1).values(seq=seq, digest=digest))


def newest(
    conn: sa.Connection, *, action: str | None, since: datetime | None, limit: int
) -> list[Entry]:
    """Read the newest records, the last one first; ``action`` may end in a dot for all below."""
    query = sa.select(rows).order_by(rows.c.seq.desc()).limit(limit)
    if action is not None:
        wanted = rows.c.action.startswith(action, autoescape=True)
        query = query.where(wanted if action.endswith(".") else rows.c.action == action)
    if since is not None:
        query = query.where(rows.c.at >= _moment(since))
    return [_entry(row) for row in conn.execute(query)]


def verify(conn: sa.Connection, *, expect: tuple[int, str] | None = None) -> Verified:
    """Walk along the chain and name what does not fit, also with a head noted earlier."""
    last = conn.execute(sa.select(head).where(head.c.id == 1)).one_or_none()
    faults: list[str] = []
    seq, digest, count = 0, START, 0
    noted = None if expect is None or expect[0] else START
    for row in _all(conn):
        faults += _wrongs(row, seq, digest)
        seq, digest, count = row.seq, row.digest, count + 1
        if expect is not None and seq == expect[0]:
            noted = digest
    if last is None:
        faults.append("the head is missing")
    elif (last.seq, last.digest) != (seq, digest):
        faults.append(f"the head is of record {last.seq}, the last record is {seq}")
    if expect is not None and noted != expect[1]:
        faults.append(f"record {expect[0]} is not the one that was noted")
    return Verified(count, f"{seq}:{digest}", tuple(faults[:FAULTS_MAX]))


def _wrongs(row: sa.Row[Any], before: int, digest: str) -> Iterator[str]:
    if row.seq != before + 1:
        missing = f"{before + 1}" if row.seq == before + 2 else f"{before + 1} to {row.seq - 1}"
        yield f"record {missing} is missing"
    elif row.previous != digest:
        yield f"record {row.seq} does not follow the one before it"
    if _digest(row._asdict()) != row.digest:
        yield f"record {row.seq} was changed"


def _all(conn: sa.Connection) -> Iterator[sa.Row[Any]]:
    last = -1
    while True:
        page = sa.select(rows).where(rows.c.seq > last).order_by(rows.c.seq).limit(PAGE)
        found = conn.execute(page).all()
        if not found:
            return
        yield from found
        last = found[-1].seq


def _digest(values: Mapping[str, Any]) -> str:
    said = [values[name] for name in _HASHED]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _moment(at: datetime) -> str:
    """Write a moment so that text sorts as time does."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _entry(row: sa.Row[Any]) -> Entry:
    """Read a record; of one that somebody spoilt the words as they lie there."""
    try:
        detail = json.loads(row.detail)
    except ValueError:
        detail = None
    return Entry(
        seq=row.seq,
        at=row.at,
        act=Act(
            action=row.action,
            actor=row.actor,
            source=row.source,
            object=row.object,
            detail=detail if isinstance(detail, dict) else {"unreadable": row.detail},
        ),
        previous=row.previous,
        digest=row.digest,
    )
