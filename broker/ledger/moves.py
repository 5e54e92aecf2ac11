"""The one UPDATE that moves jobs: what may be asked of a row, and what SQL itself puts into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from broker.ledger.columns import just_after
from broker.ledger.jobs import COLUMNS, jobs, to_job
from broker.records import Job
from broker.states import Status


class Moved(NamedTuple):
    """A job after its transition, with the number of its next event and what hangs on the task."""

    job: Job
    event_seq: int
    canvas: Mapping[str, Any] | None


class Sql(Enum):
    """A value of a transition that SQL itself knows."""

    NEXT_FENCE = "fence + 1"
    NEXT_ATTEMPT = "attempt + 1"
    OWN_LEASE = "the lease it had"
    FIRST_START = "when it first started, else now"
    THE_MOMENT = "now, or just after the last change or entry if that is later"


NOW: Final = sa.bindparam("now_", type_=jobs.c.updated_at.type)
#: each entry that tells of a change bears its moment, so the last entry's is one of these two
_LAST: Final = sa.case(
    (jobs.c.logged_at > jobs.c.updated_at, jobs.c.logged_at), else_=jobs.c.updated_at
)
#: ``jobs.not_before`` in SQL; asked of the row itself, it is true of whoever wrote while we waited
_NOT_BEFORE: Final = sa.case((_LAST >= NOW, just_after(_LAST)), else_=NOW)
_SQL: Final[Mapping[Sql, sa.ColumnElement[Any]]] = MappingProxyType(
    {
        Sql.NEXT_FENCE: jobs.c.fence + 1,
        Sql.NEXT_ATTEMPT: jobs.c.attempt + 1,
        Sql.OWN_LEASE: jobs.c.lease_id,
        Sql.FIRST_START: sa.func.coalesce(jobs.c.started_at, _NOT_BEFORE),
        Sql.THE_MOMENT: _NOT_BEFORE,
    }
)
#: neither held back nor expired
DUE: Final = sa.and_(
    sa.or_(jobs.c.next_attempt_at.is_(None), jobs.c.next_attempt_at <= NOW),
    sa.or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > NOW),
)
#: what may be asked of the rows beside their ids
_GUARDS: Final[Mapping[str, sa.ColumnElement[bool]]] = MappingProxyType(
    {
        "status": jobs.c.status == sa.bindparam("is_status", type_=jobs.c.status.type),
        "lease_id": jobs.c.lease_id == sa.bindparam("is_lease_id"),
        "claimed_by": jobs.c.claimed_by == sa.bindparam("is_claimed_by"),
        "due": DUE,
    }
)


def transition(
    conn: sa.Connection,
    ids: Sequence[str],
    *,
    now: datetime,
    status: Status | None = None,
    lease_id: str | None = None,
    claimed_by: str | None = None,
    due: bool = False,
    to: Mapping[str, Any],
) -> list[Moved]:
    """Move those jobs that still are as expected, each by one version and one event number.

    Expected are a status, a lease, its holder, and that it is due: neither held back nor expired.
    """
    guards = {
        "status": status, "lease_id": lease_id, "claimed_by": claimed_by, "due": due or None,
    }  # fmt: skip
    asked = tuple(name for name, value in guards.items() if value is not None)
    known = tuple((name, value) for name, value in to.items() if isinstance(value, Sql))
    given = {name: value for name, value in to.items() if not isinstance(value, Sql)}
    parameters = {f"to_{name}": value for name, value in given.items()}
    parameters |= {
        "now_": now, "is_status": status, "is_lease_id": lease_id, "is_claimed_by": claimed_by,
    }  # fmt: skip
    one = len(ids) == 1
    parameters |= {"id_": ids[0]} if one else {"ids": list(ids)}
    statement = _transition(asked, tuple(given), known, one=one)
    rows = conn.execute(statement, parameters)
    return [Moved(to_job(row), row.event_seq, row.canvas) for row in rows]


@cache
def _transition(
    asked: tuple[str, ...],
    given: tuple[str, ...],
    known: tuple[tuple[str, Sql], ...],
    *,
    one: bool,
) -> sa.Update:
    """Build the one UPDATE of a kind of transition, once: building cost more than running it."""
    # an IN of parameters is written anew at each call
    which = (
        jobs.c.id == sa.bindparam("id_")
        if one
        else jobs.c.id.in_(sa.bindparam("ids", expanding=True))
    )
    values = {name: sa.bindparam(f"to_{name}", type_=jobs.c[name].type) for name in given}
    guards = (_GUARDS[name] for name in asked)
    return update(which, *guards, to=values | dict(known)).returning(
        *COLUMNS, jobs.c.event_seq, jobs.c.canvas
    )


def update(*where: sa.ColumnElement[bool], to: Mapping[str, Any]) -> sa.Update:
    """Build the UPDATE of a transition: what it sets, and what each of them changes beside it."""
    return (
        jobs.update()
        .where(*where)
        .values(
            version=jobs.c.version + 1,
            event_seq=jobs.c.event_seq + 1,
            updated_at=_NOT_BEFORE,
            **{name: _SQL[to_] if isinstance(to_, Sql) else to_ for name, to_ in to.items()},
        )
    )


#: what ends whatever lease a job has, and remembers it for repeats
END_LEASE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "last_lease_id": Sql.OWN_LEASE,
        "lease_id": None,
        "lease_seconds": None,
        "lease_expires_at": None,
        "held_until": None,
    }
)


def renew(conn: sa.Connection, job: Job, *, until: datetime, lease_seconds: int) -> None:
    """Extend the lease of a job whose row is locked, for when the reservations cannot.

    The sweep that ends leases asks for this moment, so a heartbeat that got here first wins.
    """
    conn.execute(
        jobs.update()
        .where(jobs.c.id == job.id)
        .values(
            lease_expires_at=until, held_until=None, lease_seconds=lease_seconds,
            version=jobs.c.version + 1,
        )
    )  # fmt: skip
