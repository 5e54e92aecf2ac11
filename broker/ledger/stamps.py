"""Which jobs carry a stamp of Celery's: looked for among those that have not ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from broker.ledger.jobs import CHUNK, jobs
from broker.states import LIVE

#: a header and the value it was stamped with
Stamp = tuple[str, Any]
#: jobs read at once; the rows are small
PAGE: Final = 2000
_HAS_SOME: Final = sa.type_coerce(jobs.c.canvas, sa.Text).like('%"stamps":%')


def stamped(
    conn: sa.Connection, wanted: Iterable[Stamp], *, after: int = 0
) -> tuple[list[str], int]:
    """Name those of the next live jobs that carry one of the stamps, and where to go on.

    The number to go on from is 0 when there are no more.
    """
    query = (
        sa.select(jobs.c.id, jobs.c.seq, jobs.c.canvas)
        .where(jobs.c.status.in_(LIVE), jobs.c.seq > after, _HAS_SOME)
        .order_by(jobs.c.seq)
        .limit(PAGE)
    )
    rows = conn.execute(query).all()
    some = list(wanted)
    found = [row.id for row in rows if matches(row.canvas, some)]
    return found, rows[-1].seq if len(rows) == PAGE else 0


def of(conn: sa.Connection, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Read what hangs on those of the jobs that are stamped."""
    found: dict[str, Mapping[str, Any]] = {}
    for at in range(0, len(ids), CHUNK):
        query = sa.select(jobs.c.id, jobs.c.canvas).where(
            jobs.c.id.in_(ids[at : at + CHUNK]), _HAS_SOME
        )
        found |= {row.id: row.canvas for row in conn.execute(query)}
    return found


def matches(canvas: Mapping[str, Any], wanted: Iterable[Stamp]) -> bool:
    """Tell whether what hangs on a job has one of the stamps."""
    stamps = canvas.get("stamps") or {}
    return any(value in stamps.get(header, ()) for header, value in wanted)
