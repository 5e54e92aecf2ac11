"""What the edge says a job is, checked before anything is believed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Ids become parts of URLs and of paths here.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_MAX_TYPE = 64
_MAX_LEASE_ID = 256
_LONGEST_S = 7 * 86400


class NotAJob(ValueError):
    """Not even the id of a job can be made out: there is nothing to report on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A granted job."""

    id: str
    type: str
    payload: Mapping[str, object]
    attempt: int
    #: None from an edge that knows none; such a holder is held to token and worker id
    lease_id: str | None
    fence: int | None
    #: what is wrong with the rest of it; such a job is failed, not run
    defect: str | None = None
    #: what the last holder left when it gave the job back
    checkpoint: object = None
    #: the task's own, counted from its start here; what the owner allows stays the most
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a heartbeat brings back."""

    cancel_requested: bool
    drain: bool
    #: seconds the lease still has by the edge's clock, when it says so
    expires_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the edge's orders to this worker stand."""

    cursor: int
    #: claim nothing, finish what runs; None when nothing is said of it
    drain: bool | None = None
    #: how many jobs at once; None leaves it to this machine's owner
    concurrency: int | None = None
    #: ids of jobs to stop
    cancels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """What hello brings back: the edge's own pace, where it has one."""

    wait_s: int | None = None
    heartbeat_s: float | None = None
    features: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of a job's log; its number makes a repeat harmless."""

    seq: int
    level: str
    message: str
    payload: Mapping[str, object] | None = None


def parse_job(raw: object) -> Job:
    """Return the job; what is wrong but its id goes into its defect.

    Raises NotAJob when there is no usable id.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
        raise NotAJob("a job is an object with an id")
    job_id: str = raw["id"]
    if not _ID.fullmatch(job_id):
        raise NotAJob("the id of a job is letters, digits, '-' and '_'")
    lease_id, fence = raw.get("leaseId"), raw.get("fence")
    job_type, payload, attempt = raw.get("type"), raw.get("payload"), raw.get("attempt")
    hard, soft = raw.get("timeLimitSeconds"), raw.get("softTimeLimitSeconds")
    defects = [
        name
        for name, good in (
            ("leaseId", lease_id is None or isinstance(lease_id, str)),
            ("fence", fence is None or _is_count(fence)),
            ("type", isinstance(job_type, str) and 0 < len(job_type) <= _MAX_TYPE),
            ("payload", isinstance(payload, dict)),
            ("attempt", _is_count(attempt)),
            ("timeLimitSeconds", hard is None or _seconds(hard) is not None),
            ("softTimeLimitSeconds", soft is None or _seconds(soft) is not None),
        )
        if not good
    ]
    return Job(
        id=job_id,
        type=job_type if isinstance(job_type, str) else "",
        payload=payload if isinstance(payload, dict) else {},
        attempt=attempt if isinstance(attempt, int) else 0,
        lease_id=lease_id[:_MAX_LEASE_ID] if isinstance(lease_id, str) else None,
        fence=fence if isinstance(fence, int) and not isinstance(fence, bool) else None,
        defect=f"the edge sent a job with a bad {', '.join(defects)}" if defects else None,
        checkpoint=raw.get("checkpoint"),
        time_limit_s=_seconds(hard),
        soft_time_limit_s=_seconds(soft),
    )


def parse_beat(raw: Mapping[str, object]) -> Beat:
    """Return what a heartbeat's answer means for the holder."""
    left = raw.get("expiresIn")
    return Beat(
        cancel_requested=raw.get("cancelRequestedAt") is not None,
        drain=raw.get("drain") is True,
        expires_in_s=_seconds(left),
    )


def parse_standing(raw: Mapping[str, object]) -> Standing | None:
    """Return how orders stand; None when that cannot be read. Kinds we do not know are left out."""
    cursor, orders = raw.get("cursor"), raw.get("orders")
    if not isinstance(cursor, int) or not _is_count(cursor) or not isinstance(orders, list):
        return None
    told = [one for one in orders if isinstance(one, dict)]
    kinds = {str(one.get("kind")): one for one in told}
    slots = kinds.get("concurrency", {}).get("n")
    return Standing(
        cursor=cursor,
        drain=True if "drain" in kinds else False if "resume" in kinds else None,
        concurrency=slots if isinstance(slots, int) and _is_count(slots) else None,
        cancels=frozenset(str(one.get("jobId")) for one in told if one.get("kind") == "cancel"),
    )


def parse_welcome(raw: Mapping[str, object]) -> Welcome:
    """Return what the edge asks of its workers; what it does not say is left to us."""
    wait, beat, features = (raw.get(k) for k in ("waitSeconds", "heartbeatSeconds", "features"))
    return Welcome(
        wait_s=wait if _is_count(wait) and isinstance(wait, int) else None,
        heartbeat_s=_seconds(beat),
        features=frozenset(f for f in features if isinstance(f, str))
        if isinstance(features, list)
        else frozenset(),
    )


def _seconds(value: object) -> float | None:
    """Return a time above 0, not longer than any that is used; None when it is none."""
    if type(value) not in (int, float) or not isinstance(value, int | float) or value <= 0:
        return None
    # Compared first: an integer may be too large for a float.
    return float(min(value, _LONGEST_S))


def _is_count(value: object) -> bool:
    """Say whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
