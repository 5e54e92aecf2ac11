"""How a job lies in the reservations as text, for whoever holds it; read by Drawbridge alone."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

from broker.records import Job
from broker.states import Status

#: when its log was last written to is for the ledger, which alone is asked before the next entry
_NAMES: Final = tuple(field.name for field in fields(Job) if field.name != "logged_at")
_MOMENTS: Final = tuple(name for name in _NAMES if name.endswith(("_at", "_until")))


def dump(job: Job) -> str:
    """Write a job as JSON that only Drawbridge reads."""
    values = {name: getattr(job, name) for name in _NAMES}
    # large, and its holder has it since the claim
    values["checkpoint"] = None
    return _ENCODER.encode(values)


def _moment(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a job")


#: made once: one for each job would cost as much as what it writes
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=_moment)


def load(text: str) -> Job:
    """Read back what ``dump`` wrote."""
    values = json.loads(text)
    for name in _MOMENTS:
        if values[name] is not None:
            values[name] = datetime.fromisoformat(values[name])
    return Job(**values | {"status": Status(values["status"])})


def cancel_flag(job: Job) -> str:
    """Return what a heartbeat tells the holder of a cancel request; empty when there is none."""
    if job.cancel_requested_at is None:
        return ""
    return json.dumps([job.cancel_requested_at.isoformat(), job.cancel_reason])


def with_flag(job: Job, flag: str) -> Job:
    """Put a cancel request from the reservations into the job it is about."""
    if not flag:
        return job
    moment, reason = json.loads(flag)
    return replace(job, cancel_requested_at=datetime.fromisoformat(moment), cancel_reason=reason)
