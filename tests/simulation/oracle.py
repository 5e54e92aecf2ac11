"""What must be true, read from the tables, from Celery's ears and from what clients were answered.

Imports nothing of the product, so it can not share its mistakes.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Final

TERMINAL: Final = ("succeeded", "failed", "cancelled", "dead_letter")
#: what may have become of a lease by which call of its holder
ENDS: Final = {
    "complete": {"succeeded"},
    "fail": {"failed", "cancelled"},
    "release": {"released", "cancelled"},
    "ack": {"cancelled"},
}
STORED: Final = {
    "succeeded": "SUCCESS", "failed": "FAILURE", "dead_letter": "FAILURE", "cancelled": "REVOKED",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept."""

    invariant: str
    job: str
    evidence: str


class Oracle:
    """Judges one run, at each answer and at its end."""

    def __init__(self, sql: Any) -> None:
        self._sql: sqlite3.Connection = sql
        self.broken: list[Broken] = []
        self.figures: Counter[str] = Counter()
        self.published: list[str] = []
        self.created: list[str] = []
        #: results whose complete was answered with 200
        self.results: dict[str, str] = {}
        self.cancels: set[str] = set()
        #: rows of the outbox that Celery has heard
        self._told: set[int] = set()
        self._ended: dict[tuple[str, int], tuple[Any, ...]] = {}
        self._granted: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def _rows(self, query: str, *args: Any) -> list[sqlite3.Row]:
        cursor = self._sql.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(query, args).fetchall()

    def _job(self, job: str) -> Any:
        found = self._rows("SELECT * FROM jobs WHERE id = ?", job)
        return found[0] if found else None

    def _break(self, invariant: str, job: str, evidence: str) -> None:
        self.broken.append(Broken(invariant, job, evidence))

    def _must(self, so: bool, invariant: str, job: str, evidence: str) -> None:
        if not so:
            self._break(invariant, job, evidence)

    # -- at each answer ----------------------------------------------------------------------

    def outcome(self, job: str, lease: str) -> str | None:
        """Say how a lease has ended; None while it is open."""
        query = "SELECT outcome FROM attempts WHERE job_id = ? AND lease_id = ?"
        found = self._rows(query, job, lease)
        return found[0]["outcome"] if found else "never"

    def answered(self, op: str, job: str, lease: str, *, before: str | None, said: str) -> None:
        """Judge a 200 to a holder; ``before`` is how its lease had ended when it called."""
        if before is not None and (before not in ENDS[op] or said == "stale"):
            self.figures["stale_accepted"] += 1
            self._break("I4", job, f"{op} accepted of a lease that was {before}")
            return
        after = self.outcome(job, lease)
        if after not in ENDS[op]:
            self._break("I5", job, f"200 on {op}, and the lease is {after} in the ledger")
        if op == "complete":
            self.results[job] = said
            stored = "SELECT 1 FROM outbox WHERE job_id = ? AND kind = 'store'"
            self._must(bool(self._rows(stored, job)), "I5", job, "200, and Celery is told nothing")

    def refused(self, op: str, job: str, *, before: str | None) -> None:
        """Judge a refusal to a holder."""
        if before is None:
            self._break("I4", job, f"{op} of an open lease was refused")
        else:
            self.figures["stale_rejected"] += 1

    def granted(self, worker: str, job: str, lease: str, fence: int, *, most: int | None) -> None:
        """Judge an answer to a claim."""
        self.figures["granted"] += 1
        query = "SELECT fence, worker_id FROM attempts WHERE job_id = ? AND lease_id = ?"
        rows = [tuple(row) for row in self._rows(query, job, lease)]
        self._must((fence, worker) in rows, "I3", job, f"granted {lease}, the ledger has {rows}")
        self._granted[job].append((fence, lease))
        if most is not None:
            query = "SELECT count(*) FROM jobs WHERE claimed_by = ? AND status = 'running'"
            held = self._rows(query, worker)[0][0]
            self._must(held <= most, "I17", job, f"{worker} holds {held}, may hold {most}")

    def hear(self, seq: int, job: str, kind: str, data: dict[str, Any]) -> None:
        """Note what Celery was told of a job."""
        row = self._job(job)
        if kind == "store" and row["run"] == 1:
            so = data["state"] == STORED.get(row["status"])
            self._must(so, "I8", job, f"{data['state']} told of {row['status']}")
        self._told.add(seq)

    def ids(self) -> list[str]:
        """Name the jobs there are."""
        return [row["id"] for row in self._rows("SELECT id FROM jobs ORDER BY seq")]

    def look(self) -> None:
        """Judge what must hold at any instant."""
        query = f"SELECT * FROM jobs WHERE status IN {TERMINAL}"  # noqa: S608  words of ours
        for row in self._rows(query):
            now = (row["status"], row["result"], row["last_digest"], row["finished_at"])
            was = self._ended.setdefault((row["id"], row["run"]), now)
            if was != now:
                self.figures["double_terminal"] += 1
                self._break("I2", row["id"], f"ended as {was}, now {now}")
        query = "SELECT job_id FROM attempts WHERE ended_at IS NULL GROUP BY 1 HAVING count(*) > 1"
        for row in self._rows(query):
            self._break("I3", row["job_id"], "two open leases")

    # -- at the end --------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Tell whether no job is live and nothing waits to be told."""
        live = "SELECT 1 FROM jobs WHERE status IN ('queued', 'running') LIMIT 1"
        untold = "SELECT 1 FROM outbox WHERE done_at IS NULL AND parked_at IS NULL LIMIT 1"
        return not self._rows(live) and not self._rows(untold)

    def live(self) -> dict[str, str]:
        """Name the jobs that have not ended, with what they are."""
        query = "SELECT id, status FROM jobs WHERE status IN ('queued', 'running')"
        return {row["id"]: row["status"] for row in self._rows(query)}

    def signature(self) -> list[Any]:
        """Return all that matters of the ledger, but for moments and drawn ids."""
        jobs = "SELECT id, status, reason, attempt, fence, run, result, error_message FROM jobs"
        leases = "SELECT job_id, fence, attempt, worker_id, outcome FROM attempts"
        log = "SELECT job_id, seq, message FROM events"
        told = "SELECT job_id, kind, done_at IS NULL FROM outbox"
        order = {jobs: "id", leases: "job_id, fence", log: "job_id, seq", told: "job_id, seq"}
        return [
            [tuple(row) for row in self._rows(f"{query} ORDER BY {by}")]
            for query, by in order.items()
        ]

    def conclude(self) -> None:
        """Judge the end of a run, after all has healed."""
        self.look()
        jobs = {row["id"]: row for row in self._rows("SELECT * FROM jobs")}
        for job in {*self.published, *self.created} - jobs.keys():
            self.figures["lost"] += 1
            self._break("I1", job, "accepted, and not in the ledger")
        for job, result in self.results.items():
            row = jobs[job]
            if row["status"] != "succeeded" or json.loads(row["result"]) != result:
                self.figures["acknowledged_result_lost"] += 1
                self._break("I5", job, f"200 for {result}, and it is {row['status']}")
        for job, row in jobs.items():
            if row["status"] not in TERMINAL:
                self._break("I19", job, f"still {row['status']} when all has healed")
            self._judge_log(row)
            self._judge_leases(row)
            self._judge_told(row)

    def _judge_log(self, row: Any) -> None:
        query = "SELECT seq, message, payload, created_at FROM events WHERE job_id = ? ORDER BY seq"
        log = self._rows(query, row["id"])
        seqs = [event["seq"] for event in log]
        self._must(seqs == list(range(1, len(log) + 1)), "I14", row["id"], f"events {seqs}")
        ends, due = 0, ""
        for event in log:
            title, payload = event["message"], json.loads(event["payload"] or "{}")
            if title == "Job claimed":
                self._must(event["created_at"] >= due, "I9", row["id"], f"claimed before {due}")
            due = (payload.get("nextAttemptAt") or "").replace("T", " ").rstrip("Z")
            ended = title in {"Job completed", "Job failed", "Job cancelled"}
            ends += ended or (title == "Lease expired" and payload.get("status") == "dead_letter")
            if title == "Job redriven":
                self._must(ends == 1, "I2", row["id"], f"{ends} ends before a redrive")
                ends = 0
        self._must(ends == 1, "I2", row["id"], f"{ends} ends of a run")

    def _judge_leases(self, row: Any) -> None:
        leases = self._rows("SELECT * FROM attempts WHERE job_id = ? ORDER BY fence", row["id"])
        fences = [lease["fence"] for lease in leases]
        self._must(fences == list(range(1, row["fence"] + 1)), "I3", row["id"], f"fences {fences}")
        counted = Counter(
            lease["run"] for lease in leases if lease["outcome"] in {"failed", "lost", "succeeded"}
        )
        most = max(counted.values(), default=0)
        self._must(most <= row["max_attempts"], "I9", row["id"], f"{most} counted attempts")
        known = {lease["fence"]: lease["lease_id"] for lease in leases}
        for fence, lease_id in self._granted[row["id"]]:
            same = known.get(fence) == lease_id
            self._must(same, "I3", row["id"], f"fence {fence} of two leases")

    def _judge_told(self, row: Any) -> None:
        job = row["id"]
        rows = self._rows("SELECT seq, kind, data FROM outbox WHERE job_id = ? ORDER BY seq", job)
        stores = [one for one in rows if one["kind"] == "store"]
        counted = f"{len(stores)} results of {row['run']} runs"
        self._must(len(stores) == row["run"], "I8", job, counted)
        last = json.loads(stores[-1]["data"])["state"] if stores else None
        if last is None or last != STORED.get(row["status"]) or stores[-1]["seq"] not in self._told:
            self.figures["lost"] += 1
            self._break("I8", job, f"Celery was not told that it is {row['status']}")
        links = json.loads(row["canvas"] or "{}").get("links", 0)
        sent = [one["seq"] in self._told for one in rows if one["kind"] == "link"]
        want = [True] * links if row["status"] == "succeeded" else []
        self._must(sent == want, "I8", job, f"links told {sent} at {row['status']}")
        done = row["status"] == "cancelled" or job not in self.cancels
        self._must(done, "I12", job, f"a cancel was answered, and it is {row['status']}")
