"""Invariants that the ledger alone must keep: I1-I3, I7, I9, I13, I14, I17."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.chaos.facts import STATUSES, TERMINAL, Attempt, Facts, Job, ends
from tests.chaos.report import Violation

#: The clocks of two processes on one machine, and what a reply takes.
CLOCK_S: Final = 0.05
#: Outcomes that use up an attempt.
COUNTED: Final = frozenset({"failed", "lost"})
#: What the log says of each end of a lease.
TOLD_AS: Final = {
    "succeeded": {"Job completed"},
    "failed": {"Job failed", "Job failed (retryable)"},
    "lost": {"Lease expired"},
    "released": {"Job released"},
    "undelivered": {"Job released"},
    "cancelled": {"Job cancelled"},
}
#: Which calls of a holder may end a lease so; the others are ended by the queue itself.
ENDED_BY: Final = {"succeeded": {"complete"}, "failed": {"fail"}, "released": {"release"}}
STORED_AS: Final = {
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "dead_letter": "FAILURE",
    "cancelled": "REVOKED",
}


def i1_every_message_is_one_row(facts: Facts) -> Iterator[Violation]:
    """Every message acked to the broker is exactly one job, in exactly one state."""
    for call in facts.asked("send", "create", "poison"):
        task_id = call.answer.get("id") if call.op == "create" else call.job
        gone = task_id is not None and not facts.by_task.get(task_id)
        # the broker may have dropped it at its moment, as it was told
        told_to = facts.broker_expires and "expires" in call.what
        if call.accepted and gone and not told_to:
            yield Violation("I1", str(task_id), f"lost: {call.client} was promised it by {call.op}")
    for task_id, rows in facts.by_task.items():
        if len(rows) > 1:
            yield Violation("I1", task_id, f"doubled: {len(rows)} rows of one task")
    tags = Counter(job.payload["tag"] for job in facts.jobs if "tag" in (job.payload or {}))
    for tag, count in tags.items():
        if count > 1:
            yield Violation("I1", tag, f"doubled: {count} jobs of one request")
    for job in facts.jobs:
        if job.status not in STATUSES:
            yield Violation("I1", job.id, f"status {job.status!r}")
    if facts.left_in_broker:
        yield Violation("I1", "", f"{facts.left_in_broker} messages are still with the broker")


def i2_one_end_and_it_stays(facts: Facts) -> Iterator[Violation]:
    """At most one terminal transition a run; a terminal row never changes."""
    for job in facts.jobs:
        log = facts.events_of.get(job.id, ())
        told = sum(ends(event) for event in log)
        due = sum(event.message == "Job redriven" for event in log) + (job.status in TERMINAL)
        if told != due:
            yield Violation("I2", job.id, f"{told} ends told, {due} due; it is {job.status}")
    final = {job.id: terminal_text(job) for job in facts.jobs if job.status in TERMINAL}
    for sample in facts.samples:
        for job_id, before in sample.ended.items():
            after = final.get(job_id, "")
            redriven = job_id in facts.job and facts.job[job_id].run > int(before.partition("|")[0])
            if after != before and not redriven:
                yield Violation("I2", job_id, f"was {before!r}, became {after!r}")


def terminal_text(job: Job) -> str:
    """What must not change of a terminal row."""
    return f"{job.run}|{job.status}|{job.result!r}|{job.result_summary!r}|{job.finished_at}"


def i3_leases_are_granted_by_commits(facts: Facts) -> Iterator[Violation]:
    """One open lease a job at most; the fence strictly grows; no lease outside the ledger."""
    for job in facts.jobs:
        leases = facts.attempts_of.get(job.id, ())
        fences = [one.fence for one in leases]
        if fences != list(range(1, job.fence + 1)):
            yield Violation("I3", job.id, f"fence {job.fence}, but leases {fences}")
        opened = [one for one in leases if one.ended_at is None]
        held = [job.lease_id] if job.status == "running" else []
        if [one.lease_id for one in opened] != held:
            yield Violation("I3", job.id, f"{job.status}, with {len(opened)} open leases")
        for before, after in pairwise(leases):
            if before.ended_at is not None and after.started_at < before.ended_at:
                yield Violation("I3", job.id, f"leases {before.fence} and {after.fence} overlap")
    for call in facts.asked("claim"):
        for told in call.answer.get("jobs", ()):
            lease = facts.lease.get((told["id"], told["lease"]))
            if lease is None or lease.fence != told["fence"]:
                yield Violation("I3", told["id"], f"{call.client} was given an unknown lease")
    yield from _fences_fall(facts)


def _fences_fall(facts: Facts) -> Iterator[Violation]:
    last: dict[str, int] = {}
    for sample in sorted(facts.samples, key=lambda one: one.at):
        for job_id, fence in sample.fences.items():
            if fence < last.get(job_id, 0):
                yield Violation("I3", job_id, f"fence fell from {last[job_id]} to {fence}")
            last[job_id] = fence


def i7_nothing_in_between(facts: Facts) -> Iterator[Violation]:
    """A reply never given leaves a job unchanged, or as if it had been given."""
    for lease in facts.attempts:
        log = facts.events_of.get(lease.job_id, ())
        here = [one.message for one in log if one.fence == lease.fence]
        if lease.outcome is None:
            due, told = 0, sum(m in names for m in here for names in TOLD_AS.values())
        else:
            due, told = 1, sum(m in TOLD_AS[lease.outcome] for m in here)
        if told != due:
            yield Violation(
                "I7", lease.job_id, f"lease {lease.fence} ended {lease.outcome}, told {told} times"
            )
        if (lease.ended_at is None) != (lease.outcome is None):
            yield Violation("I7", lease.job_id, f"lease {lease.fence} is half ended")
        yield from _asked_for(facts, lease)
    for job in facts.jobs:
        stores = [e.data["state"] for e in facts.effects_of.get(job.id, ()) if e.kind == "store"]
        due_stores = [STORED_AS[job.status]] if job.status in TERMINAL else []
        if job.run == 1 and stores != due_stores:
            yield Violation("I7", job.id, f"{job.status}, but the outbox stores {stores}")


def _asked_for(facts: Facts, lease: Attempt) -> Iterator[Violation]:
    """A lease that its holder ended was ended by a call that somebody made."""
    ops = ENDED_BY.get(lease.outcome or "")
    if ops is None:
        return
    asked = [c for c in facts.calls_on.get((lease.job_id, lease.lease_id), ()) if c.op in ops]
    job = facts.job.get(lease.job_id)
    if lease.outcome == "succeeded" and job is not None:
        asked = [call for call in asked if call.what.get("result") == job.result]
    if not asked:
        yield Violation("I7", lease.job_id, f"lease {lease.fence} {lease.outcome} by nobody's call")


def i9_attempts_are_bounded(facts: Facts) -> Iterator[Violation]:
    """Attempts ≤ max_attempts; what was not delivered does not count; no retry before its time."""
    for job in facts.jobs:
        counted: Counter[int] = Counter()
        for lease in facts.attempts_of.get(job.id, ()):
            if lease.attempt != counted[lease.run] + 1:
                yield Violation(
                    "I9", job.id,
                    f"lease {lease.fence} is attempt {lease.attempt},"
                    f" after {counted[lease.run]} counted",
                )  # fmt: skip
            counted[lease.run] += lease.outcome in COUNTED
            if counted[lease.run] > job.max_attempts:
                yield Violation("I9", job.id, f"{counted[lease.run]} of {job.max_attempts} used")
        yield from _early(facts, job)


def _early(facts: Facts, job: Job) -> Iterator[Violation]:
    started = {one.fence: one.started_at for one in facts.attempts_of.get(job.id, ())}
    for event in facts.events_of.get(job.id, ()):
        due = (event.payload or {}).get("nextAttemptAt")
        if due is None or event.message == "Job queued":
            continue
        again = started.get(event.fence + 1)
        if again is not None and again < due - CLOCK_S:
            yield Violation("I9", job.id, f"attempt after fence {event.fence} began {due - again}s")


def i13_neither_early_nor_late_nor_to_strangers(facts: Facts) -> Iterator[Violation]:
    """Not before its `eta`, not after its `expires`, not to a worker that may not run it."""
    wanted = {call.job: call.what for call in facts.asked("send") if call.job is not None}
    for lease in facts.attempts:
        job = facts.job.get(lease.job_id)
        if job is None:
            continue
        said = wanted.get(job.task_id, {})
        if lease.started_at < (said.get("eta") or 0.0) - CLOCK_S:
            yield Violation("I13", job.id, "claimed before its eta")
        until = said.get("expires")
        if until is not None and lease.started_at > until + CLOCK_S:
            yield Violation("I13", job.id, "claimed after it expired")
        types = facts.types.get(lease.worker_id)
        if types is not None and job.type not in types:
            yield Violation("I13", job.id, f"{lease.worker_id} may not run {job.type}")


def i14_logs_have_no_gaps(facts: Facts) -> Iterator[Violation]:
    """Events are numbered and stamped in the order of commits; a reader sees each once."""
    for job_id, log in facts.events_of.items():
        if [event.seq for event in log] != list(range(1, len(log) + 1)):
            yield Violation("I14", job_id, f"numbers {[event.seq for event in log]}")
        for before, after in pairwise(log):
            if after.created_at <= before.created_at:
                yield Violation("I14", job_id, f"{after.seq} is not younger than {before.seq}")
    read: dict[tuple[str, str], list[int]] = {}
    for call in facts.asked("read_events"):
        if call.accepted and call.job is not None:
            read.setdefault((call.client, call.job), []).extend(call.answer["seqs"])
    for (client, job_id), seqs in read.items():
        if seqs != list(range(1, len(seqs) + 1)):
            yield Violation("I14", job_id, f"{client} read {seqs}")


def i17_caps_hold(facts: Facts) -> Iterator[Violation]:
    """No worker ever runs more than it may."""
    for sample in facts.samples:
        for worker, running in sample.running.items():
            cap = facts.caps.get(worker)
            if cap is not None and running > cap:
                yield Violation("I17", "", f"{worker} ran {running} of {cap} at {sample.at}")
