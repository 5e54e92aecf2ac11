"""Grants and good ends on PostgreSQL: each one statement, with the rows that a transition writes.

Only for jobs that nothing hangs on, and only what changes nothing unless all of it holds; what is
left over the other way answers, which also says why. What is told of a transition comes from the
same functions as everywhere, asked with columns in the place of values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from broker import effects, figures
from broker.ledger import events, grants, jobs, workers
from broker.ledger.attempts import attempts
from broker.ledger.driver import Call, Prepared
from broker.ledger.engine import Ledger
from broker.ledger.grants import Terms
from broker.ledger.moves import DUE, END_LEASE, NOW, Sql, update
from broker.ledger.outbox import outbox
from broker.records import Completion, Job
from broker.states import Trigger, sources, target

_JOBS: Final = jobs.jobs
_WORKERS: Final = workers.workers
_TEXTS: Final = sa.ARRAY(sa.Text)
_WORKER: Final = sa.bindparam("worker", type_=sa.Text)


def grant(ledger: Ledger, ids: Sequence[str], terms: Terms) -> list[Job]:
    """Give to one worker those of the jobs that may run now; see ``grants.grant``.

    None to a worker whose orders forbid it, and none under a key that was used before.
    """
    request = terms.request
    if not can(ledger) or request.policy.max_concurrency is not None:
        return []
    lock, statement = _grant(ledger.engine.dialect, many=len(ids) > 1)
    given = {
        "ids": list(ids), "first": ids[0], "worker": request.worker_id,
        "worker_json": _ascii(request.worker_id), "lease": terms.lease_id,
        "lease_s": request.lease_seconds, "until": terms.until, "held": terms.held_until,
        "key": request.claim_key, "digest": terms.digest, "now_": terms.now,
    }  # fmt: skip
    # the second sees what those before it have written, once the first has let it pass
    _, rows = ledger.at_once(Call(lock, given), Call(statement, given))
    granted = [jobs.to_job(row) for row in rows]
    for job in granted:
        figures.moved(job.queue, job.type, Trigger.GRANT)
    return grants.in_order(granted)


class Ending(NamedTuple):
    """The good end of one of several jobs, and the digest of the call that says so."""

    said: Completion
    digest: str


def complete(
    ledger: Ledger, worker_id: str, endings: Sequence[Ending], *, now: datetime
) -> dict[str, Job]:
    """End with success those of the leases that are this worker's still; the jobs by id."""
    if not endings or not can(ledger) or any(one.said.lease_id is None for one in endings):
        return {}
    statement = _complete(ledger.engine.dialect, many=len(endings) > 1)
    said = [one.said for one in endings]
    given = {
        "ids": [one.job_id for one in said],
        "first": said[0].job_id,
        "leases": [one.lease_id for one in said],
        "results": [None if one.result is None else _ascii(one.result) for one in said],
        "summaries": [one.result_summary for one in said],
        "digests": [one.digest for one in endings],
        "shown": [_ascii(effects.shown_result(one.result, one.result_summary)) for one in said],
        "payloads": [_ascii(events.completed(one.result_summary)) for one in said],
        "worker": worker_id, "worker_json": _ascii(worker_id), "now_": now,
    }  # fmt: skip
    [rows] = ledger.at_once(Call(statement, given))
    ended = [jobs.to_job(row) for row in rows]
    for job in ended:
        figures.moved(job.queue, job.type, Trigger.COMPLETE)
    return {job.id: job for job in ended}


def can(ledger: Ledger) -> bool:
    """Tell whether a ledger knows statements that write into several tables."""
    return ledger.dialect == "postgresql"


# -- the statements --------------------------------------------------------------------------


@cache
def _grant(dialect: sa.Dialect, *, many: bool) -> tuple[Prepared, Prepared]:
    (queued,) = sources(Trigger.GRANT)
    used = sa.exists().where(attempts.c.worker_id == _WORKER, attempts.c.claim_key == _bind("key"))
    paused = sa.cast(_WORKERS.c.paused, JSONB).has_key(_JOBS.c.queue)
    told = sa.exists().where(
        _WORKERS.c.worker_id == _WORKER, _WORKERS.c.draining_at.is_not(None) | paused
    )
    where = [_JOBS.c.status == _fixed(queued), DUE, ~used, ~told.correlate(_JOBS)]
    to = {
        "status": _fixed(target(queued, Trigger.GRANT)), "claimed_by": _WORKER,
        "lease_id": _bind("lease"), "lease_seconds": _bind("lease_s", sa.Integer()),
        "lease_expires_at": _bind("until", NOW.type), "held_until": _bind("held", NOW.type),
        "next_attempt_at": sa.null(), "fence": Sql.NEXT_FENCE, "started_at": Sql.FIRST_START,
    }  # fmt: skip
    moved = update(_among(many=many), *where, to=to).returning(*_RETURNED).cte("moved")
    job = _like(moved)
    lease = {
        "job_id": moved.c.id, "fence": moved.c.fence, "attempt": moved.c.attempt,
        "run": moved.c.run, "worker_id": _WORKER, "lease_id": moved.c.lease_id,
        "lease_seconds": moved.c.lease_seconds, "claim_key": _bind("key"),
        "claim_digest": _bind("digest"), "started_at": moved.c.updated_at,
    }  # fmt: skip
    written = [
        _insert(attempts, sa.select(*lease.values()), lease, name="leases"),
        _log(moved, "Job claimed", _json(grants.claimed(job))),
        _told(moved, effects.granted(job, _moment(moved.c.updated_at)), moved),
    ]
    return Prepared(_lock(), dialect, [_WORKERS.c.draining_at]), _prepared(moved, written, dialect)


def _lock() -> Any:
    """Build the statement that holds a worker's row; see ``workers.lock_worker``."""
    columns = {"worker_id": _WORKER, "grants": sa.literal_column("1"), "first_seen_at": NOW}
    row = workers.upsert("postgresql", _WORKERS).from_select(
        list(columns), sa.select(*columns.values()), include_defaults=False
    )
    return workers.counting(row).returning(_WORKERS.c.draining_at)


@cache
def _complete(dialect: sa.Dialect, *, many: bool) -> Prepared:
    (running,) = sources(Trigger.COMPLETE)
    names = ("ids", "leases", "results", "summaries", "digests", "shown", "payloads")
    given = (
        sa.func.unnest(*(_bind(name, _TEXTS) for name in names))
        .table_valued(*names, name="given")
        .render_derived()
    )
    where = [
        _JOBS.c.id == given.c.ids, _among(many=many),
        _JOBS.c.status == _fixed(running), _JOBS.c.lease_id == given.c.leases,
        _JOBS.c.claimed_by == _WORKER,
        # what hangs on a task is told in an order of its own, and of several ends all are or none
        ~_hangs(many=many),
    ]  # fmt: skip
    to = {
        **END_LEASE, "status": _fixed(target(running, Trigger.COMPLETE)),
        "last_digest": given.c.digests, "finished_at": Sql.THE_MOMENT,
        "result": given.c.results, "result_summary": given.c.summaries,
        "reason": None, "error_message": None, "error_type": None, "traceback": None,
    }  # fmt: skip
    to = {name: sa.null() if value is None else value for name, value in to.items()}
    told = [given.c.shown, given.c.payloads]
    moved = update(*where, to=to).returning(*_RETURNED, *told).cte("moved")
    ended = (
        attempts.update()
        .where(attempts.c.job_id == moved.c.id, attempts.c.fence == moved.c.fence)
        .values(ended_at=moved.c.updated_at, outcome=_fixed("succeeded"), error_message=sa.null())
        .returning(attempts.c.job_id, attempts.c.started_at)
        .cte("ended")
    )
    took = sa.func.greatest(0, _epoch(moved.c.updated_at) - _epoch(ended.c.started_at))
    rows = effects.succeeded_with(
        _like(moved), None, _moment(moved.c.updated_at),
        runtime_s=cast(float, took), shown=cast(str, _Json(moved.c.shown)),
    )  # fmt: skip
    written = [
        _log(moved, "Job completed", moved.c.payloads),
        _told(moved, rows, moved.outerjoin(ended, ended.c.job_id == moved.c.id)),
    ]
    return _prepared(moved, written, dialect)


_RETURNED: Final = (*jobs.COLUMNS, _JOBS.c.event_seq)


def _prepared(moved: sa.CTE, written: Iterable[sa.CTE], dialect: sa.Dialect) -> Prepared:
    columns = [moved.c[column.name] for column in jobs.COLUMNS]
    return Prepared(sa.select(*columns).add_cte(*written), dialect, columns)


def _among(*, many: bool) -> sa.ColumnElement[bool]:
    """Ask for the ids given; many rows are locked in the order in which all lock them."""
    if not many:
        return _JOBS.c.id == _bind("first")
    locked = sa.select(_JOBS.c.id).where(_JOBS.c.id == sa.any_(_bind("ids", _TEXTS)))
    locked = locked.order_by(_JOBS.c.id)
    return _JOBS.c.id.in_(sa.select(locked.with_for_update().cte("locked").c.id))


def _hangs(*, many: bool) -> sa.ColumnElement[bool]:
    """Ask whether anything hangs on one of the tasks."""
    if not many:
        return _JOBS.c.canvas.is_not(None)
    one = _JOBS.alias("one")
    return sa.exists().where(one.c.id == sa.any_(_bind("ids", _TEXTS)), one.c.canvas.is_not(None))


def _log(moved: sa.CTE, message: str, payload: sa.ColumnElement[str]) -> sa.CTE:
    """Write the entry of a transition into each job's log."""
    entry = events.row(_like(moved), cast(int, moved.c.event_seq), message, None, cast(Any, None))
    entry |= {
        "id": sa.cast(sa.func.gen_random_uuid(), sa.Text), "payload": payload,
        "created_at": moved.c.updated_at,
    }  # fmt: skip
    columns = {
        name: value if isinstance(value, sa.ColumnElement) else _fixed(value)
        for name, value in entry.items()
        if value is not None
    }
    return _insert(events.events, sa.select(*columns.values()), columns, name="log")


def _told(moved: sa.CTE, rows: Sequence[effects.Row], source: sa.FromClause) -> sa.CTE:
    """Write what Celery must be told, in order for each job."""
    each = sa.union_all(
        *(
            sa.select(
                moved.c.id, moved.c.seq, sa.literal_column(str(at)).label("nth"),
                _fixed(kind).label("kind"), _json(data).label("data"),
            ).select_from(source)
            for at, (kind, data) in enumerate(rows)
        )
    ).subquery("told")  # fmt: skip
    columns = {
        "job_id": each.c.id, "kind": each.c.kind, "data": each.c.data, "created_at": NOW,
        "tries": sa.literal_column("0"),
    }  # fmt: skip
    chosen = sa.select(*columns.values()).order_by(each.c.seq, each.c.nth)
    return _insert(outbox, chosen, columns, name="effects")


def _insert(
    table: sa.Table, rows: sa.Select[Any], columns: Mapping[str, Any], *, name: str
) -> sa.CTE:
    insert = table.insert().from_select(list(columns), rows, include_defaults=False)
    return insert.cte(name)


# -- values that are columns ---------------------------------------------------------------------


class _Json:
    """A column, or a parameter, that holds JSON already."""

    def __init__(self, text: sa.ColumnElement[Any]) -> None:
        self.text = text


def _like(moved: sa.CTE) -> Job:
    """Return what is asked like a job and answers with columns."""
    worker = _Json(sa.bindparam("worker_json", type_=sa.Text))
    columns = {name: moved.c[name] for name in ("id", "attempt", "fence")}
    # a message may say 2**31 - 1, and what is added to that must not overflow
    retries = sa.cast(moved.c.retries, sa.BigInteger)
    return cast(Job, SimpleNamespace(**columns, retries=retries, claimed_by=worker))


def _moment(column: sa.ColumnElement[Any]) -> datetime:
    """Return what is asked like a moment and answers with SQL."""
    return cast(datetime, SimpleNamespace(timestamp=lambda: _epoch(column)))


def _epoch(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.extract("epoch", column)


def _json(value: Any) -> sa.ColumnElement[str]:
    """Write JSON in SQL, of values that may be columns; numbers are the only bare ones."""
    parts: list[Any] = []
    _write(value, parts)
    return sa.func.concat(*(_fixed(one) if isinstance(one, str) else one for one in parts))


def _write(value: Any, parts: list[Any]) -> None:
    if isinstance(value, _Json):
        parts.append(value.text)
    elif isinstance(value, sa.ColumnElement):
        parts.append(value)
    elif isinstance(value, Mapping):
        for at, (key, one) in enumerate(value.items()):
            parts.append(("," if at else "{") + _ascii(key) + ":")
            _write(one, parts)
        parts.append("}" if value else "{}")
    else:
        parts.append(_ascii(value))


def _ascii(value: Any) -> str:
    """Write JSON as the ledger keeps it: compact ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _bind(name: str, kind: Any = None) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.Text() if kind is None else kind)


def _fixed(text: str) -> sa.ColumnElement[Any]:
    """Write a word of ours into the statement itself."""
    return sa.literal_column("'" + text.replace("'", "''") + "'", sa.Text)
