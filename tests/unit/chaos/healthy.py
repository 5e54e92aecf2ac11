"""A small run in which every promise was kept, made by hand, for the oracle's tests to damage."""

from tests.chaos.facts import (
    Artifact,
    Attempt,
    Effect,
    Entry,
    Event,
    Facts,
    Fault,
    Job,
    Rebuild,
    Sample,
    Sent,
)
from tests.chaos.judging_ledger import terminal_text
from tests.chaos.promises import Call

DIGEST = "sha256:" + "ab" * 32
RESULT = {"n": 1, "artifact": {"name": "out", "digest": DIGEST}}

#: retried once, then done
DONE = Job(
    id="done", task_id="done", status="succeeded", payload={"tag": "done"}, attempt=2, fence=2,
    claimed_by="w", result=RESULT, created_at=9.0, finished_at=14.0,
)  # fmt: skip
WAITS = Job(id="waits", task_id="waits", payload={"tag": "waits"}, next_attempt_at=900.0)
CANCELLED = Job(id="cancelled", task_id="cancelled", status="cancelled", finished_at=31.0)
POISON = Job(
    id="poison", task_id="poison", status="failed", reason="rejected", error_message="not JSON",
    finished_at=32.0,
)  # fmt: skip
NAMELESS = Job(
    id="nameless", task_id="nameless", status="failed", reason="rejected", error_message="no JSON",
    finished_at=33.0,
)  # fmt: skip
DEAD = Job(
    id="dead", task_id="dead", status="dead_letter", max_attempts=1, fence=1, finished_at=26.5,
    reason="attempts_exhausted",
)  # fmt: skip
JOBS = (DONE, WAITS, CANCELLED, POISON, NAMELESS, DEAD)

ATTEMPTS = (
    Attempt(
        job_id="done", fence=1, lease_id="l1", started_at=10.0, ended_at=11.0, outcome="failed"
    ),
    Attempt(
        job_id="done", fence=2, attempt=2, lease_id="l2", started_at=12.0, ended_at=14.0,
        outcome="succeeded",
    ),
    Attempt(
        job_id="dead", fence=1, lease_id="l3", lease_seconds=5, started_at=20.0, ended_at=26.5,
        outcome="lost",
    ),
)  # fmt: skip


def events(job: str, *told: tuple[float, int, str, object]) -> list[Event]:
    """Make the entries of a log: moment, fence, message, payload."""
    return [
        Event(job_id=job, seq=seq, created_at=at, fence=fence, message=message, payload=payload)
        for seq, (at, fence, message, payload) in enumerate(told, start=1)
    ]


EVENTS = (
    *events(
        "done",
        (9.0, 0, "Job queued", None),
        (10.0, 1, "Job claimed", None),
        (11.0, 1, "Job failed (retryable)", {"status": "queued", "nextAttemptAt": 11.5}),
        (12.0, 2, "Job claimed", None),
        (13.0, 2, "Artifact uploaded", None),
    ),
    Event(job_id="done", seq=6, created_at=13.5, fence=2, message="step", worker_seq=0),
    Event(job_id="done", seq=7, created_at=14.0, fence=2, message="Job completed"),
    *events("waits", (9.0, 0, "Job queued", None)),
    *events("cancelled", (9.0, 0, "Job queued", None), (31.0, 0, "Job cancelled", None)),
    *events("poison", (32.0, 0, "Job rejected", None)),
    *events("nameless", (33.0, 0, "Job rejected", None)),
    *events(
        "dead",
        (9.0, 0, "Job queued", None),
        (20.0, 1, "Job claimed", None),
        (26.5, 1, "Lease expired", {"status": "dead_letter", "nextAttemptAt": None}),
    ),
)

STATES = {
    "done": "SUCCESS", "cancelled": "REVOKED", "poison": "FAILURE", "nameless": "FAILURE",
    "dead": "FAILURE",
}  # fmt: skip
EFFECTS = tuple(
    Effect(seq=seq, job_id=job, kind="store", data={"state": state}, done_at=40.0)
    for seq, (job, state) in enumerate(STATES.items(), start=1)
)


def call(
    op: str, at: float, job: str | None = None, lease: str | None = None, **more: object
) -> Call:
    """Make a call that was answered with 200 a tenth of a second later."""
    values: dict[str, object] = {"client": "w", "told_at": at + 0.1, "status": 200, **more}
    return Call(op=op, asked_at=at, job=job, lease=lease, **values)  # type: ignore[arg-type]


def granted(key: str, at: float, lease: str, fence: int, job: str = "done") -> Call:
    """Make a claim that was given one job."""
    told = {"jobs": [{"id": job, "lease": lease, "fence": fence}]}
    return call("claim", at, what={"key": key, "lease_s": 10}, answer=told)


SAID = {"seqs": [0]}
SAID_AS = {"ids": {"6": "event-6"}}
FILE = {"name": "out", "digest": DIGEST}
CALLS = (
    call("send", 9.0, "done", what={"eta": 9.5, "link": "note"}),
    call("create", 9.0, what={"tag": "waits"}, answer={"id": "waits"}),
    call("send", 9.0, "cancelled", what={"expires": 100.0}),
    call("send", 9.0, "dead", what={}),
    call("send", 9.0, "unsure", what={}, status=None, told_at=9.5),
    granted("k1", 10.0, "l1", 1),
    call("heartbeat", 10.3, "done", "l1", what={"lease_s": 10}),
    call("fail", 10.9, "done", "l1", what={"retryable": True}, answer={"status": "queued"}),
    call("complete", 11.5, "done", "l1", what={"result": 7}, status=409),
    granted("k2", 12.0, "l2", 2),
    granted("k2", 12.2, "l2", 2),
    call("heartbeat", 12.5, "done", "l2", what={"lease_s": 10}),
    call("upload", 13.0, "done", "l2", what=FILE, answer={"ids": {"out": "file-1"}}, status=201),
    call("upload", 13.2, "done", "l2", what=FILE, answer={"ids": {"out": "file-1"}}),
    call("events", 13.4, "done", "l2", what=SAID, answer=SAID_AS, status=201),
    call("events", 13.6, "done", "l2", what=SAID, answer=SAID_AS),
    call("complete", 13.9, "done", "l2", what={"result": RESULT}, answer={"status": "succeeded"}),
    call("complete", 14.2, "done", "l2", what={"result": RESULT}, answer={"status": "succeeded"}),
    call("read_events", 15.0, "done", client="reader", answer={"seqs": [1, 2, 3]}),
    call("read_events", 16.0, "done", client="reader", answer={"seqs": [4, 5, 6, 7]}),
    granted("k3", 20.0, "l3", 1, "dead"),
    call("heartbeat", 21.0, "dead", "l3", what={"lease_s": 5}),
    call("heartbeat", 30.0, "dead", "l3", what={"lease_s": 5}, status=409),
    call("cancel", 30.9, "cancelled", client="op", answer={"status": "cancelled"}),
    call("poison", 31.5, "poison", what={"kind": "body"}),
    call("poison", 31.6, what={"kind": "nameless"}),
    call("claim", 52.0, client="gone", what={"key": "k9", "lease_s": 10}, answer={"jobs": []}),
)

HEALTHY = Facts(
    jobs=JOBS,
    attempts=ATTEMPTS,
    events=EVENTS,
    effects=EFFECTS,
    artifacts=(
        Artifact(
            id="file-1", job_id="done", name="out", digest=DIGEST, size_bytes=3,
            storage_path="sha256/ab", fence=2,
        ),
    ),
    entries=(Entry(queue="remote", generation=4, index="scheduled", job_id="waits"),),
    generations={"remote": 4},
    pointers={"remote": 4},
    results={
        job: {"status": state, "result": RESULT if job == "done" else None}
        for job, state in STATES.items()
    },
    sent=(Sent(id="link-1", parent_id="done", task="note"),),
    files={"sha256/ab": ("ab" * 32, 3)},
    calls=CALLS,
    samples=(
        Sample(at=11.0, running={"w": 1}, fences={"done": 1}),
        Sample(at=15.0, ended={"done": terminal_text(DONE)}, fences={"done": 2}),
    ),
    faults=(
        Fault(kind="ledger frozen", began_at=12.4, ended_at=12.8, in_flight=True),
        Fault(kind="edge killed", began_at=13.0, ended_at=13.1, in_flight=True),
    ),
    rebuilds=(Rebuild(jobs=1000, seconds=1.02),),
    wakes=(0.02, 0.09, 0.4),
    caps={"w": 1},
    types={"w": frozenset({"echo"})},
    revoked={"gone": 50.0},
    quiet=(10.0, 30.0),
    read_at=100.0,
)  # fmt: skip
