"""Invariants about the stores beside the ledger, and about time: I8, I11, I15, I19-I23."""

import statistics
from collections.abc import Iterator
from typing import Final

from tests.chaos.facts import TERMINAL, Facts, Job
from tests.chaos.judging_ledger import STORED_AS
from tests.chaos.report import Violation

#: What Celery takes for an end.
READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
LIES_IN: Final = {"queued": {"ready", "scheduled"}, "running": {"granting", "reserved"}}
#: Two ticks of expiry and five seconds.
EXPIRY_S: Final = 7.0
OUTBOX_S: Final = 10.0
REBUILD_S: Final = 1.0
REBUILD_PER_JOB_S: Final = 0.03 / 1000
WAKE_S: Final = 0.1


def i8_celery_sees_what_the_ledger_says(facts: Facts) -> Iterator[Violation]:
    """The backend shows the ledger's end and result; links are sent at least once, under one id."""
    for job in facts.jobs:
        found = facts.results.get(job.task_id, {})
        state = found.get("status")
        if job.status not in TERMINAL:
            if state in READY:
                yield Violation("I8", job.id, f"{job.status}, but Celery sees {state}")
            continue
        if state != STORED_AS[job.status]:
            yield Violation("I8", job.id, f"{job.status}, but Celery sees {state}")
        value = job.result_summary if job.result is None else job.result
        if state == "SUCCESS" and found.get("result") != value:
            yield Violation("I8", job.id, f"result {value!r}, but Celery sees another")
    for call in facts.asked("send"):
        if "link" in call.what:
            yield from _links(facts, call.job or "", call.what["link"])


def _links(facts: Facts, task_id: str, name: str) -> Iterator[Violation]:
    ids = {sent.id for sent in facts.sent if (sent.parent_id, sent.task) == (task_id, name)}
    for job in facts.by_task.get(task_id, ()):
        due = int(job.status == "succeeded")
        if len(ids) != due:
            yield Violation("I8", job.id, f"{job.status}, and {name} went out under {len(ids)} ids")


def i11_the_index_is_part_of_the_ledger(facts: Facts) -> Iterator[Violation]:
    """What the reservations offer or hold is so in the ledger, of one generation, and complete."""
    for queue, generation in facts.generations.items():
        if facts.pointers.get(queue) != generation:
            yield Violation("I11", "", f"{queue}: generation {generation} is not in force")
    for lane in facts.wrong_heads:
        yield Violation("I11", "", f"{lane}: its first job is not among the heads")
    lies: dict[str, list[str]] = {}
    for entry in facts.entries:
        job = facts.job.get(entry.job_id)
        lies.setdefault(entry.job_id, []).append(entry.index)
        if entry.generation != facts.generations.get(entry.queue):
            yield Violation("I11", entry.job_id, f"an entry of generation {entry.generation}")
        if job is None or entry.index not in LIES_IN.get(job.status, ()):
            status = job.status if job else "unknown"
            yield Violation("I11", entry.job_id, f"{entry.index}, but the ledger says {status}")
    for job in facts.jobs:
        found = lies.get(job.id, [])
        if len(found) != int(job.status in LIES_IN):
            yield Violation("I11", job.id, f"{job.status}, and in the index as {found}")


def i15_files_are_whole(facts: Facts) -> Iterator[Violation]:
    """An artifact's row means its file, whole; a result names only files of its own lease."""
    for row in facts.artifacts:
        digest, size = facts.files.get(row.storage_path, ("", -1))
        if (f"sha256:{digest}", size) != (row.digest, row.size_bytes):
            yield Violation("I15", row.job_id, f"the file of {row.name} is not what its row says")
    rows = {(row.job_id, row.fence, row.name, row.digest) for row in facts.artifacts}
    for call in facts.asked("upload"):
        lease = facts.lease.get((call.job or "", call.lease or ""))
        if not call.accepted or lease is None:
            continue
        key = (lease.job_id, lease.fence, call.what["name"], call.what["digest"])
        if key not in rows:
            yield Violation(
                "I15", lease.job_id, f"the upload of {key[2]} was promised, and is gone"
            )
    for job in facts.jobs:
        yield from _named(job, rows)


def _named(job: Job, rows: set[tuple[str, int, str, str]]) -> Iterator[Violation]:
    named = job.result.get("artifact") if isinstance(job.result, dict) else None
    if named and (job.id, job.fence, named["name"], named["digest"]) not in rows:
        yield Violation("I15", job.id, f"its result names {named['name']}, which it never had")


def i19_everything_ends(facts: Facts) -> Iterator[Violation]:
    """Once faults stop, every job reaches an end, or waits for its moment."""
    for job in facts.jobs:
        waits = job.status == "queued" and (job.next_attempt_at or 0.0) > facts.read_at
        if job.status not in TERMINAL and not waits:
            yield Violation("I19", job.id, f"stuck: {job.status}, attempt {job.attempt}")


def i20_lapsed_leases_end_soon(facts: Facts) -> Iterator[Violation]:
    """A lease that ran out is ended within two ticks and five seconds, when nothing is broken."""
    for lease in facts.attempts:
        if lease.outcome != "lost" or lease.ended_at is None:
            continue
        deadline = lease.started_at + lease.lease_seconds
        for call in facts.calls_on.get((lease.job_id, lease.lease_id), ()):
            if call.op == "heartbeat" and not call.refused:
                told = call.asked_at if call.told_at is None else call.told_at
                deadline = max(deadline, told + call.what["lease_s"])
        broken = any(
            fault.began_at < lease.ended_at and fault.ended_at > deadline - lease.lease_seconds
            for fault in facts.faults
        )
        late = lease.ended_at - deadline
        if late > EXPIRY_S + facts.slack_s and not broken:
            yield Violation("I20", lease.job_id, f"lease {lease.fence} ended {late:.1f} s late")


def i21_the_outbox_drains(facts: Facts) -> Iterator[Violation]:
    """No effect waits for long once faults stop, and none is given up."""
    for effect in facts.effects:
        if effect.parked_at is not None:
            yield Violation("I21", effect.job_id, f"{effect.kind} was given up")
        elif effect.done_at is None:
            age = facts.read_at - effect.created_at
            if age > OUTBOX_S + facts.slack_s:
                yield Violation("I21", effect.job_id, f"{effect.kind} waits for {age:.0f} s")


def i22_the_index_comes_back_fast(facts: Facts) -> Iterator[Violation]:
    """A lost index is built within 1 s and 0.03 s per thousand jobs."""
    for rebuild in facts.rebuilds:
        if rebuild.seconds > REBUILD_S + REBUILD_PER_JOB_S * rebuild.jobs + facts.slack_s:
            yield Violation("I22", "", f"{rebuild.seconds:.2f} s for {rebuild.jobs} jobs")


def i23_waiting_claims_wake(facts: Facts) -> Iterator[Violation]:
    """A waiting claim is answered within 100 ms of its job."""
    if facts.wakes and statistics.median(facts.wakes) > WAKE_S + facts.slack_s:
        yield Violation("I23", "", f"half took over {statistics.median(facts.wakes):.3f} s")
