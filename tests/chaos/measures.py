"""What a run is described by, beyond what it is judged by: recovery, repeats, outages, shares."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tests.chaos.facts import Attempt, Facts, Fault
from tests.chaos.promises import IDLE, Call
from tests.chaos.report import Violation

#: "Not now", and "no room": what the contract lets an edge say of itself.
FORESEEN: Final = frozenset({503, 507})
#: Faults after which the index is empty, or not what it was.
LOSSES: Final = frozenset(
    {
        "reservations flushed",
        "reservations restarted empty",
        "reservations failed over",
        "reservations failed over late",
        "reservations on two primaries",
        "reservations woken as primary",
    }
)


def describe(facts: Facts) -> dict[str, float | str]:
    """Say how a run went."""
    outcomes = Counter(lease.outcome or "open" for lease in facts.attempts)
    beats = [call for call in facts.asked("heartbeat") if not call.refused]
    busy = Counter(str(call.status) for call in facts.calls if call.ambiguous)
    return {
        "jobs": json.dumps(Counter(job.status for job in facts.jobs)),
        "leases": json.dumps(outcomes),
        "leases per job": round(len(facts.attempts) / max(1, len(facts.jobs)), 3),
        "lapsed leases": outcomes["lost"],
        "untaken grants": outcomes["undelivered"],
        "links sent more than once": len(facts.sent) - len({one.id for one in facts.sent}),
        "calls": len(facts.calls),
        "calls without an answer": json.dumps(busy),
        "heartbeats answered, in faults too": share(
            sum(call.accepted for call in beats), len(beats)
        ),
        "kept through a lost index": kept(facts),
        "faults by kind": json.dumps(Counter(fault.kind for fault in facts.faults)),
        "rule of three": f"< {3 / max(1, len(facts.faults)):.3f} per fault, at 95 %",
        **recoveries(facts),
        "index rebuilt in s": round(max((r.seconds for r in facts.rebuilds), default=0.0), 3),
        "wake-up p50 ms": round(statistics.median(facts.wakes or [0.0]) * 1000, 1),
        "busy machine adds s": round(facts.slack_s, 2),
    }


def unexplained(facts: Facts) -> Iterable[Violation]:
    """Report every "not now" that did not say when: the contract promises `Retry-After`."""
    for call in facts.calls:
        if call.status in {429, 503} and not call.answer.get("retry_after"):
            yield Violation("contract", call.job or "", f"{call.op}: {call.status}, and no moment")
        elif call.status is not None and call.status >= 500 and call.status not in FORESEEN:
            yield Violation("contract", call.job or "", f"{call.op}: {call.status}")


def share(part: int, whole: int) -> str:
    """Write a share of a whole."""
    return f"{100 * part / whole:.2f} % of {whole}" if whole else "none asked"


def recoveries(facts: Facts) -> dict[str, str]:
    """Say how long after each kind of fault a worker's call was accepted again."""
    answered = sorted(
        call.told_at
        for call in facts.calls
        if call.accepted and call.told_at is not None and call.op not in IDLE
    )
    by_kind: dict[str, list[float]] = {}
    for fault in facts.faults:
        again = next((at for at in answered if at >= fault.ended_at), None)
        if again is not None:
            by_kind.setdefault(_what(fault), []).append(again - fault.ended_at)
    return {
        f"recovered from {kind} in s": (
            f"p50 {statistics.median(found):.2f}, max {max(found):.2f} of {len(found)}"
        )
        for kind, found in sorted(by_kind.items())
    }


def _what(fault: Fault) -> str:
    return fault.kind.partition(" ")[0]


def kept(facts: Facts) -> str:
    """Say how many of those who ran when the index was lost went on under their lease."""
    through = asked = 0
    for fault in facts.faults:
        if fault.kind not in LOSSES:
            continue
        for lease in facts.attempts:
            call = _next_word(facts, lease, fault.began_at)
            if call is not None:
                asked += 1
                through += call.accepted
    return share(through, asked)


def _next_word(facts: Facts, lease: Attempt, at: float) -> Call | None:
    """Return the first answered heartbeat of a lease after a moment at which it was open."""
    if lease.started_at >= at or (lease.ended_at is not None and lease.ended_at <= at):
        return None
    calls: Sequence[Call] = facts.calls_on.get((lease.job_id, lease.lease_id), ())
    before = [call for call in calls if call.op == "heartbeat" and call.accepted]
    until = max(
        (call.asked_at + call.what["lease_s"] for call in before if call.asked_at <= at),
        default=lease.started_at + lease.lease_seconds,
    )
    mine = lease.outcome not in {"lost", "undelivered"} and lease.ended_at is not None
    end = min(until, lease.ended_at or until) if mine else until
    beats = (call for call in calls if call.op == "heartbeat" and not call.ambiguous)
    return next((call for call in beats if at < call.asked_at < end), None)
