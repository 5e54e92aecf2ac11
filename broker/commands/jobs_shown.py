"""How jobs look on a terminal; what strangers wrote is never markup, nor a control character."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from broker.client import Artifact, Attempt, Event, Job, Why

_STYLES = {"succeeded": "green", "failed": "red", "dead_letter": "red", "running": "cyan"}

#: columns of what is no terminal: a file or a pipe wants everything, on one line
_WIDE = 2000


def screen() -> Console:
    """Return where tables go: as wide as a terminal is, and shortening nothing elsewhere."""
    out = Console()
    return out if out.is_terminal else Console(width=_WIDE)


def plain(value: object) -> str:
    """Show a value of somebody else's on one line, with what could move the cursor escaped."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def listing(jobs: Sequence[Job]) -> RenderableType:
    """Show jobs as a table."""
    # an id is there to be copied: a narrow terminal shortens the others
    first = Column("id", no_wrap=True)
    table = Table(first, "type", "status", "queue", "attempt", "worker", "created", box=None)
    for job in jobs:
        table.add_row(
            Text(job["id"], no_wrap=True),
            Text(plain(job["type"])),
            Text(job["status"], style=_STYLES.get(job["status"], "")),
            Text(plain(job["queue"])),
            f"{job['attempt']}/{job['maxAttempts']}",
            Text(plain(job["claimedBy"])),
            _second(job["createdAt"]),
        )
    return table if jobs else Text("No such jobs.")


def detail(job: Job, attempts: Sequence[Attempt], files: Sequence[Artifact]) -> RenderableType:
    """Show one job with its leases and files."""
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    for name, value in _facts(job).items():
        if value:
            facts.add_row(name, Text(plain(value)))
    shown: list[RenderableType] = [facts]
    if attempts:
        table = Table("attempt", "fence", "worker", "started", "ended", "outcome", box=None)
        for one in attempts:
            table.add_row(
                str(one["attempt"]), str(one["fence"]), Text(plain(one["workerId"])),
                _second(one["startedAt"]), _second(one["endedAt"]), one["outcome"] or "",
            )  # fmt: skip
        shown += ["", table]
    if files:
        table = Table("file", "bytes", "digest", box=None)
        for file in files:
            table.add_row(Text(plain(file["name"])), str(file["sizeBytes"]), file["digest"][:19])
        shown += ["", table]
    return Group(*shown)


def summary(job: Job) -> str:
    """Say in one line where a job stands."""
    parts = [job["id"], job["status"]]
    if job["status"] == "running" and job["cancelRequestedAt"]:
        parts.append("(its worker is asked to stop)")
    why = job["cancelReason"] if job["status"] == "cancelled" else job["errorMessage"]
    parts.append(plain(job["resultSummary"] or why))
    return "  ".join(part for part in parts if part)


def standing(job: Job) -> str:
    """Say in a few words what a job does now, for whoever watches it."""
    if job["status"] != "running":
        return f"{job['status']}; Ctrl-C leaves it alone"
    return f"running on {plain(job['claimedBy'])}{_progress(job)}; Ctrl-C leaves it alone"


def reasons(why: Why) -> list[str]:
    """Say why a job does not run, a line for each cause."""
    lines = [plain(one["message"]) for one in why["reasons"]]
    for one in why["workers"]:
        may = "may take it" if one["eligible"] else f"may not, by {plain(one['rule'])}"
        lines.append(f"{plain(one['workerId'])} {may}: {plain(one['message'])}")
    return [f"The job is {plain(why['status'])}, on queue {plain(why['queue'])}.", *lines]


def event_line(event: Event) -> str:
    """Say in one line what was logged."""
    level = "" if event["level"] == "info" else f"{event['level'].upper()}  "
    return f"{_second(event['createdAt'])}  {level}{plain(event['message'])}"


def _progress(job: Job) -> str:
    said = job["progress"] or {}
    percent = said.get("percent")
    words = ["" if percent is None else f"{percent:g} %", plain(said.get("message"))]
    told = " ".join(word for word in words if word)
    return f": {told}" if told else ""


def _facts(job: Job) -> dict[str, object]:
    return {
        "id": job["id"],
        "type": job["type"],
        "status": job["status"],
        "queue": job["queue"],
        "priority": job["priority"],
        "attempt": f"{job['attempt']} of {job['maxAttempts']}",
        "worker": job["claimedBy"],
        "progress": _progress(job).removeprefix(": "),
        "lease until": job["leaseExpiresAt"],
        "next attempt": job["nextAttemptAt"],
        "created": job["createdAt"],
        "started": job["startedAt"],
        "finished": job["finishedAt"],
        "cancel asked": job["cancelRequestedAt"],
        "cancel reason": job["cancelReason"],
        "payload": _json(job["payload"]),
        "result": _json(job["result"]),
        "summary": job["resultSummary"],
        "error type": job["errorType"],
        "error": job["errorMessage"],
    }


def _json(value: object) -> str | None:
    """Show a value as it would be sent; nothing where there is none."""
    return None if value in (None, {}) else json.dumps(value, ensure_ascii=False)


def _second(moment: str | None) -> str:
    """Leave out the fraction of a second."""
    return "" if moment is None else moment.partition(".")[0].removesuffix("Z") + "Z"
