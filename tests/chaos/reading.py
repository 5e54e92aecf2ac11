"""How the facts of a run are read out of the stores: plain SQL, Redis commands, files.

The only place of the suite that knows names of tables, columns and keys; imports nothing of the
product.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from tests.chaos.brokers import broker_at, redis_at
from tests.chaos.facts import (
    TERMINAL,
    Artifact,
    Attempt,
    Effect,
    Entry,
    Event,
    Facts,
    Job,
    Sample,
    Sent,
)
from tests.chaos.judging_ledger import terminal_text
from tests.chaos.promises import read

T = TypeVar("T")

#: Columns that hold JSON text.
JSON_COLUMNS: Final = frozenset({"payload", "result", "data"})
INDEXES: Final = ("scheduled", "granting", "reserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where everything lies; addresses without any proxy."""

    database_url: str
    reservations_url: str
    broker_url: str
    backend_url: str
    artifacts: Path
    promises: Path
    queue: str
    #: The queue that links are sent to; nobody consumes it.
    links: str


def engine_at(url: str) -> sa.Engine:
    """Connect to a ledger, for reading."""
    if url.startswith("sqlite"):
        return sa.create_engine(url, connect_args={"timeout": 10})
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 3})


def moment(value: Any) -> float | None:
    """Read a moment, whatever the driver makes of it, as epoch seconds."""
    if value is None or isinstance(value, float):
        return value
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).timestamp()


def rows(conn: sa.Connection, table: str, kind: type[T], where: str = "") -> list[T]:
    """Read a table as its facts; column and field have one name."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    found = conn.execute(sa.text(f"SELECT {', '.join(names)} FROM {table} {where}"))  # noqa: S608
    return [kind(**{k: value_of(k, v) for k, v in row._mapping.items()}) for row in found]


def pairs(conn: sa.Connection, query: str) -> dict[str, int]:
    """Read names and numbers."""
    return {str(name): int(number) for name, number in conn.execute(sa.text(query))}


def value_of(name: str, value: Any) -> Any:
    """Read one column."""
    if name.endswith("_at"):
        return moment(value)
    if name in JSON_COLUMNS and isinstance(value, str):
        value = json.loads(value)
        if isinstance(value, dict) and value.get("nextAttemptAt"):
            value["nextAttemptAt"] = moment(value["nextAttemptAt"])
    return value


def facts_of(places: Places, **known: Any) -> Facts:
    """Read everything, after the end of a run; ``known`` is what only the run itself can tell."""
    engine = engine_at(places.database_url)
    try:
        with engine.connect() as conn:
            ledger: dict[str, Any] = {
                "jobs": rows(conn, "jobs", Job),
                "attempts": rows(conn, "attempts", Attempt),
                "events": rows(conn, "events", Event),
                "effects": rows(conn, "outbox", Effect),
                "artifacts": rows(conn, "artifacts", Artifact),
                "generations": pairs(conn, "SELECT name, generation FROM queues"),
            }
    finally:
        engine.dispose()
    return Facts(
        **ledger,
        **_index(places, ledger["generations"]),
        **_celery(places),
        files=_files(places.artifacts),
        calls=read(places.promises),
        **known,
    )


def sample(engine: sa.Engine, at: float) -> Sample:
    """Take one snapshot of the ledger; each statement sees one moment."""
    ended = " OR ".join(f"status = '{status}'" for status in sorted(TERMINAL))
    with engine.connect() as conn:
        done = rows(conn, "jobs", Job, f"WHERE {ended}")
        running = "SELECT claimed_by, count(*) FROM jobs WHERE status = 'running' GROUP BY 1"
        return Sample(
            at=at,
            ended={job.id: terminal_text(job) for job in done},
            fences=pairs(conn, "SELECT id, fence FROM jobs"),
            running=pairs(conn, running),
        )


def _index(places: Places, generations: Mapping[str, int]) -> dict[str, Any]:
    """Read who lies where in the generation in force, and which that is."""
    pointers: dict[str, int] = {}
    entries: list[Entry] = []
    wrong: list[str] = []
    with redis_at(places.reservations_url) as client:
        for queue in generations:
            tag = f"{{db:{queue}}}:"
            pointer: Any = client.get(f"{tag}gen")
            if pointer is None:
                continue
            pointers[queue] = int(pointer)
            prefix = f"{tag}g{pointer}:"
            for key in client.scan_iter(f"{prefix}*", count=1000):
                name = key.removeprefix(prefix)
                lane = name.startswith("lane:")
                if not lane and name not in INDEXES:
                    continue
                members: Any = client.zrange(key, 0, -1)
                head = f"{next(iter(members), None)} {name.removeprefix('lane:')}"
                if lane and members and client.zscore(f"{prefix}heads", head) is None:
                    wrong.append(name)
                entries += [
                    Entry(
                        queue=queue,
                        generation=int(pointer),
                        index="ready" if lane else name,
                        job_id=member.partition(":")[2] if lane else member,
                    )
                    for member in members
                ]
    return {"pointers": pointers, "entries": entries, "wrong_heads": wrong}


def _celery(places: Places) -> dict[str, Any]:
    """Read the result backend's keys, and what lies with the broker."""
    prefix = "celery-task-meta-"
    results: dict[str, Any] = {}
    with redis_at(places.backend_url) as client:
        for key in client.scan_iter(f"{prefix}*", count=1000):
            raw: Any = client.get(key)
            if raw is not None:
                results[key.removeprefix(prefix)] = json.loads(raw)
    headers = broker_at(places.broker_url).headers(places.links)
    sent = [Sent(id=h["id"], parent_id=h.get("parent_id"), task=h["task"]) for h in headers]
    return {
        "results": results,
        "sent": sent,
        "left_in_broker": left_in_broker(places),
        "broker_expires": places.broker_url.startswith("amqp"),
    }


def left_in_broker(places: Places) -> int:
    """Count the messages that are not the ledger's yet."""
    return broker_at(places.broker_url).left(places.queue)


def prepare(places: Places) -> None:
    """Have the broker know both queues before anybody sends to one."""
    broker_at(places.broker_url).declare(places.queue, places.links)


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    found = {}
    for path in folder.glob("sha256/*/*"):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        found[path.relative_to(folder).as_posix()] = (digest, len(data))
    return found
