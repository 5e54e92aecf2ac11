"""Invariants about what clients were promised: I4-I6, I10, I12, I16, I18, I24, I25."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.chaos.facts import Attempt, Facts, ends_lease
from tests.chaos.judging_ledger import CLOCK_S
from tests.chaos.promises import Call
from tests.chaos.report import Violation

#: How a lease may have ended when its holder was told that this call ended it.
ENDS_AS: Final = {
    "complete": {"succeeded"},
    "fail": {"failed", "cancelled"},
    "release": {"released", "cancelled"},
    "ack": {"cancelled"},
}
#: Calls that change a job.
CHANGES: Final = (*ENDS_AS, "events", "upload")
#: Two reconciles and an expiry: so long an index may hold a lease that the ledger has ended.
INDEX_LAG_S: Final = 15.0
REVOKED_AFTER_S: Final = 5.0
HEARTBEATS: Final = 0.999


def i4_stale_holders_change_nothing(facts: Facts) -> Iterator[Violation]:
    """Whoever's lease the ledger has ended can do nothing any more."""
    for (job_id, lease_id), calls in facts.calls_on.items():
        lease = facts.lease.get((job_id, lease_id))
        for call in calls:
            if not call.accepted or call.op not in ENDS_AS:
                continue
            if lease is None:
                yield Violation("I4", job_id, f"{call.op} accepted under a lease never granted")
            elif lease.outcome is not None and lease.outcome not in ENDS_AS[call.op]:
                yield Violation(
                    "I4", job_id, f"{call.op} of {call.client} accepted; lease {lease.outcome}"
                )
        if lease is not None:
            yield from _late_heartbeats(facts, lease, calls)
    yield from _words_after_the_end(facts)


def _words_after_the_end(facts: Facts) -> Iterator[Violation]:
    for job_id, log in facts.events_of.items():
        over: set[int] = set()
        for event in log:
            mine = event.worker_seq is not None or event.message == "Artifact uploaded"
            if mine and event.fence in over:
                yield Violation("I4", job_id, f"event {event.seq} of a lease that had ended")
            if ends_lease(event):
                over.add(event.fence)


def _late_heartbeats(facts: Facts, lease: Attempt, calls: Sequence[Call]) -> Iterator[Violation]:
    if lease.ended_at is None:
        return
    for call in calls:
        if call.op == "heartbeat" and call.accepted:
            healed = [f.ended_at for f in facts.faults if f.began_at <= call.asked_at]
            since = max([lease.ended_at, *healed])
            if call.asked_at > since + INDEX_LAG_S + facts.slack_s:
                late = call.asked_at - lease.ended_at
                yield Violation("I4", lease.job_id, f"lease extended {late:.1f} s after its end")


def i5_what_was_promised_is_in_the_ledger(facts: Facts) -> Iterator[Violation]:
    """A 200 on complete, fail, release or ack is committed, with all that Celery must hear."""
    for call in facts.asked(*ENDS_AS):
        if not call.accepted or call.job is None:
            continue
        lease = facts.lease.get((call.job, call.lease or ""))
        job = facts.job.get(call.job)
        if job is None or lease is None or lease.outcome is None:
            yield Violation("I5", call.job, f"{call.op} of {call.client} was promised, and is gone")
            continue
        if call.op != "complete" or job.run != lease.run:
            continue
        if job.status != "succeeded" or job.result != call.what.get("result"):
            yield Violation("I5", call.job, f"acknowledged result is gone: {job.status}")
        if not any(e.kind == "store" for e in facts.effects_of.get(job.id, ())):
            yield Violation("I5", call.job, "Celery will not hear of its result")


def i6_repeats_have_the_effect_of_one(facts: Facts) -> Iterator[Violation]:
    """The same request again gives the same answer, and the effect once."""
    claims: dict[tuple[str, str], Call] = {}
    for call in facts.asked("claim"):
        if not call.accepted or not call.answer.get("jobs"):
            continue
        first = claims.setdefault((call.client, call.what["key"]), call)
        within = (call.told_at or 0.0) <= first.asked_at + call.what["lease_s"]
        if within and _granted(call) != _granted(first):
            yield Violation(
                "I6", first.answer["jobs"][0]["id"], f"{call.client}'s claim had two answers"
            )
    for (job_id, _), calls in facts.calls_on.items():
        yield from _refused_repeats(job_id, calls)
        yield from _ids(job_id, calls)
    seen: set[tuple[str, int, int]] = set()
    for event in facts.events:
        if event.worker_seq is not None:
            key = (event.job_id, event.fence, event.worker_seq)
            if key in seen:
                yield Violation("I6", event.job_id, f"workerSeq {event.worker_seq} is there twice")
            seen.add(key)


def _refused_repeats(job_id: str, calls: Sequence[Call]) -> Iterator[Violation]:
    """What was accepted once is accepted again."""
    done: list[Call] = []
    for call in calls:
        if call.op != "complete":
            continue
        known = any(d.what == call.what and (d.told_at or 0) <= call.asked_at for d in done)
        if known and call.refused:
            yield Violation("I6", job_id, f"a repeated complete was answered {call.status}")
        if call.accepted:
            done.append(call)


def _granted(call: Call) -> set[tuple[Any, ...]]:
    return {(job["id"], job["lease"], job["fence"]) for job in call.answer["jobs"]}


def _ids(job_id: str, calls: Sequence[Call]) -> Iterator[Violation]:
    """The same event and the same file have one id, however often they are sent."""
    known: dict[Any, str] = {}
    for call in calls:
        if not call.accepted or call.op not in {"events", "upload"}:
            continue
        found = call.answer["ids"]
        for name, one in found.items():
            if known.setdefault((call.op, name), one) != one:
                yield Violation("I6", job_id, f"{call.op} {name} was answered with two ids")


def _cut_short(facts: Facts, lease: Attempt) -> Call | None:
    """Return the heartbeat that promised a lease beyond the moment the queue ended it."""
    if lease.outcome not in {"lost", "undelivered"} or lease.ended_at is None:
        return None
    for call in reversed(facts.calls_on.get((lease.job_id, lease.lease_id), ())):
        if call.op == "heartbeat" and call.accepted and call.asked_at < lease.ended_at:
            promised = call.asked_at + call.what["lease_s"]
            return call if promised > lease.ended_at + CLOCK_S else None
    return None


def i10_losing_redis_costs_nothing(facts: Facts) -> Iterator[Violation]:
    """Whatever becomes of the reservations, whoever heartbeats in time keeps its lease."""
    for lease in facts.attempts:
        call = _cut_short(facts, lease)
        if call is not None:
            left = call.asked_at + call.what["lease_s"] - (lease.ended_at or 0.0)
            yield Violation(
                "I10", lease.job_id, f"lease {lease.fence} {lease.outcome} {left:.2f} s too early"
            )


def i12_cancel_is_kept(facts: Facts) -> Iterator[Violation]:
    """A cancel that was promised ends in cancelled, or in the success that came first."""
    for call in facts.asked("cancel"):
        job = facts.job.get(call.job or "")
        if not call.accepted or job is None:
            continue
        allowed = (
            {"cancelled"} if call.answer["status"] == "cancelled" else {"cancelled", "succeeded"}
        )
        if job.status not in allowed:
            yield Violation("I12", job.id, f"cancel answered {call.answer}, job is {job.status}")


def i16_poison_is_rejected(facts: Facts) -> Iterator[Violation]:
    """What cannot be read is a rejected job with its reason, and blocks nobody."""
    rejected = [job for job in facts.jobs if job.reason == "rejected"]
    nameless = 0
    for call in facts.asked("poison"):
        if not call.accepted:
            continue
        nameless += call.job is None
        for job in facts.by_task.get(call.job or "", ()):
            if (job.status, job.reason) != ("failed", "rejected") or not job.error_message:
                yield Violation("I16", job.id, f"{call.what['kind']} became {job.status}")
    named = {call.job for call in facts.asked("poison")}
    found = sum(job.task_id not in named for job in rejected)
    if found < nameless:
        yield Violation("I16", "", f"{nameless} unreadable messages, {found} rejected jobs")


def i18_revoked_is_out(facts: Facts) -> Iterator[Violation]:
    """5 s after its revocation a credential changes nothing any more."""
    for call in facts.calls:
        since = facts.revoked.get(call.client)
        if since is None or not call.accepted or call.op not in {*CHANGES, "heartbeat", "claim"}:
            continue
        if call.asked_at > since + REVOKED_AFTER_S + facts.slack_s:
            yield Violation("I18", call.job or "", f"{call.op} of revoked {call.client} accepted")


def i24_no_lease_ends_while_sql_is_away(facts: Facts) -> Iterator[Violation]:
    """While the ledger is away heartbeats are promised, and their leases do not end."""
    away = [fault for fault in facts.faults if fault.kind.startswith("ledger")]
    for lease in facts.attempts:
        call = _cut_short(facts, lease)
        if call is None:
            continue
        if any(fault.began_at <= call.asked_at <= fault.ended_at for fault in away):
            yield Violation("I24", lease.job_id, f"lease {lease.fence} ended under its holder")


def i25_heartbeats_come_through(facts: Facts) -> Iterator[Violation]:
    """Under load without faults 99.9 % of the heartbeats are answered."""
    begin, end = facts.quiet
    sent = [call for call in facts.asked("heartbeat") if begin <= call.asked_at < end]
    failed = [call for call in sent if call.ambiguous]
    if sent and 1 - len(failed) / len(sent) < HEARTBEATS:
        yield Violation("I25", "", f"{len(failed)} of {len(sent)} heartbeats went unanswered")
