"""What Celery must be told of each transition: the rows of the outbox, in stock order; pure.

Order (celery.md §2.1): success = links, chain, result, chord part, event; failure = result, chord
part, rest of the chain, errbacks, event; revoked = result, chord part, event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from broker.records import Job, Json

#: what `fields` of an event may hold of a repr
REPR_MAX: Final = 1024
#: error types that stand for an exception of Celery's own (decision 17)
WORKER_LOST: Final = "celery.exceptions.WorkerLostError"
REJECTED: Final = "celery.exceptions.InvalidTaskError"
REMOTE_ERROR: Final = "drawbridge.RemoteJobError"
#: state of a running task whose worker says how far it is, unless it names another
PROGRESS: Final = "PROGRESS"
#: Celery's own states: what a worker's progress may not be called
CELERY_STATES: Final = frozenset(
    {
        "PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "RETRY", "REJECTED",
        "IGNORED",
    },
)  # fmt: skip

#: one outbox row: kind and data
Row = tuple[str, dict[str, Json]]


def canvas_of(envelope: Mapping[str, Any] | None) -> dict[str, Json] | None:
    """Count what hangs on a task: links, errbacks, whether a chain goes on, whether a chord waits.

    And its stamps, by which it can be revoked. None when there is nothing. Kept beside the job, so
    that ending it need not read the envelope.
    """
    if envelope is None:
        return None
    embed = envelope.get("embed") or {}
    counts: dict[str, Json] = {
        "links": len(embed.get("callbacks") or ()),
        "errbacks": len(embed.get("errbacks") or ()),
        "chain": bool(embed.get("chain")),
        "chord": bool(embed.get("chord")),
    }
    if stamps := stamps_of(envelope.get("headers") or {}):
        counts["stamps"] = stamps
    return counts if any(counts.values()) else None


def stamps_of(headers: Mapping[str, Json]) -> dict[str, list[Json]]:
    """Return the stamps of a task by their headers; what is no word or number is none."""
    names, stamps = headers.get("stamped_headers"), headers.get("stamps")
    if not isinstance(names, list) or not isinstance(stamps, dict):
        return {}
    found: dict[str, list[Json]] = {}
    for name in names:
        if isinstance(name, str) and name in stamps:
            values = stamps[name] if isinstance(stamps[name], list) else [stamps[name]]
            found[name] = [one for one in values if isinstance(one, (str, int, float))]
    return found


def celery_retries(job: Job) -> int:
    """Return what Celery calls ``retries``: the message's own, and our counted attempts before."""
    return job.retries + job.attempt - 1


def received(job: Job, envelope: Mapping[str, Any] | None, at: datetime) -> list[Row]:
    """Say that the task was received; the bridge's own event, since no node has it yet."""
    headers = (envelope or {}).get("headers") or {}
    fields = {
        "name": job.type,
        "args": headers.get("argsrepr") or "()",
        "kwargs": headers.get("kwargsrepr") or repr(dict(job.payload))[:REPR_MAX],
        "root_id": headers.get("root_id") or job.task_id,
        "parent_id": headers.get("parent_id"),
        "retries": celery_retries(job),
        "eta": headers.get("eta"),
        "expires": headers.get("expires"),
    }
    return [_event("task-received", None, fields, at)]


def granted(job: Job, at: datetime) -> list[Row]:
    """Say that a worker has started it."""
    state = {"state": "STARTED", "worker": job.claimed_by, "retries": celery_retries(job)}
    return [("state", state), _event("task-started", job.claimed_by, {}, at)]


def progressed(job: Job, progress: Mapping[str, Json]) -> list[Row]:
    """Say how far it is, as ``update_state`` of an ordinary task does; no event goes with that."""
    meta = {name: progress.get(name) for name in ("percent", "message")}
    state = {
        "state": progress.get("state") or PROGRESS, "worker": job.claimed_by,
        "retries": celery_retries(job), "meta": meta | (progress.get("meta") or {}),
    }  # fmt: skip
    return [("state", state)]


def succeeded(
    job: Job, canvas: Mapping[str, Any] | None, at: datetime, *, runtime_s: float
) -> list[Row]:
    """Say that it succeeded; the result itself is read from the job, which never changes again."""
    shown = shown_result(job.result, job.result_summary)
    return succeeded_with(job, canvas, at, runtime_s=runtime_s, shown=shown)


def shown_result(result: Json, summary: str | None) -> str:
    """Return what the event of a success shows of its result."""
    return repr(summary if result is None else result)[:REPR_MAX]


def succeeded_with(
    job: Job, canvas: Mapping[str, Any] | None, at: datetime, *, runtime_s: float, shown: str
) -> list[Row]:
    """Say that it succeeded, for whoever knows what is to be shown of the result."""
    rows: list[Row] = [("link", {"index": i}) for i in range((canvas or {}).get("links", 0))]
    if canvas and canvas["chain"]:
        rows.append(("chain", {}))
    store = {"state": "SUCCESS", "worker": job.claimed_by, "retries": celery_retries(job)}
    rows.append(("store", store))
    if canvas and canvas["chord"]:
        rows.append(("chord", {"state": "SUCCESS"}))
    fields = {"result": shown, "runtime": runtime_s}
    rows.append(_event("task-succeeded", job.claimed_by, fields, at))
    return rows


def failed(
    job: Job, canvas: Mapping[str, Any] | None, at: datetime, *, worker: str | None
) -> list[Row]:
    """Say that it failed for good; ``worker`` is None when no live node said so."""
    error = error_of(job)
    store = {
        "state": "FAILURE", "worker": worker, "retries": celery_retries(job), "error": error,
    }  # fmt: skip
    rows: list[Row] = [("store", store)]
    if canvas and canvas["chord"]:
        rows.append(("chord", {"state": "FAILURE", "error": error}))
    if canvas and canvas["chain"]:
        rows.append(("chain", {"failed": True, "error": error}))
    rows += [
        ("errback", {"index": i, "error": error}) for i in range((canvas or {}).get("errbacks", 0))
    ]
    rows.append(_event("task-failed", worker, _failure_fields(error), at))
    return rows


def retried(job: Job, error: Mapping[str, Json], at: datetime, *, worker: str | None) -> list[Row]:
    """Say that it will run again; no chord and no errback hears of it."""
    state = {
        "state": "RETRY", "worker": worker, "retries": celery_retries(job), "error": dict(error),
    }  # fmt: skip
    return [("state", state), _event("task-retried", worker, _failure_fields(error), at)]


def revoked(
    job: Job,
    canvas: Mapping[str, Any] | None,
    at: datetime,
    *,
    terminated: bool,
    worker: str | None,
) -> list[Row]:
    """Say that it was cancelled or expired; stock Celery fires no errback for that.

    ``worker`` is None when no live node said that it stopped: an event would revive a dead one.
    """
    expired = job.reason == "expired"
    reason = "expired" if expired else "terminated" if terminated else "revoked"
    store = {
        "state": "REVOKED", "worker": job.claimed_by, "retries": celery_retries(job),
        "reason": reason,
    }  # fmt: skip
    rows: list[Row] = [("store", store)]
    if canvas and canvas["chord"]:
        rows.append(("chord", {"state": "REVOKED", "reason": reason}))
    fields = {"terminated": terminated, "signum": None, "expired": expired}
    rows.append(_event("task-revoked", worker, fields, at))
    return rows


def rejected(job: Job, canvas: Mapping[str, Any] | None, at: datetime) -> list[Row]:
    """Say that ingest could not take the message."""
    rows = failed(job, canvas, at, worker=None)
    return [_event("task-rejected", None, {"requeue": False}, at), *rows]


def error_of(job: Job) -> dict[str, Json]:
    """Return what failed the job, as rows of the outbox carry it."""
    return {
        "type": job.error_type or REMOTE_ERROR,
        "message": job.error_message or "",
        "traceback": job.traceback,
    }


def _failure_fields(error: Mapping[str, Json]) -> dict[str, Json]:
    name = str(error["type"]).rpartition(".")[2]
    return {
        "exception": f"{name}({str(error['message'])[:REPR_MAX]!r})",
        "traceback": error.get("traceback") or "",
    }


def _event(kind: str, worker: str | None, fields: dict[str, Json], at: datetime) -> Row:
    return ("event", {"type": kind, "worker": worker, "fields": fields, "at": at.timestamp()})
