"""What clients asked and what they were promised: JSON lines, written before and after each call.

A line is handed to the kernel before the call is sent, so that no kill of anything else loses it.
A call without a second line, or with one without a status, had an ambiguous end: the connection
was lost, or nobody answered. Imports nothing of the product.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

#: Calls that wait on purpose, or that nobody would miss: they do not count as "in flight".
IDLE: Final = frozenset({"claim", "read_events", "wake"})
#: "Too many": it says nothing about the call.
NOT_NOW: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a client, from asking to the end, moments in epoch seconds."""

    client: str
    op: str
    asked_at: float
    job: str | None = None
    lease: str | None = None
    #: What was asked, beside job and lease.
    what: Mapping[str, Any] = field(default_factory=dict)
    told_at: float | None = None
    #: None: nobody knows what became of it.
    status: int | None = None
    #: What was promised: the part of the answer that is judged.
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether it was promised."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """Whether it was refused for good."""
        return self.status is not None and not self.accepted and not self.ambiguous

    @property
    def ambiguous(self) -> bool:
        """Whether the caller must ask again: no answer, or "not now" after who knows what."""
        return self.status is None or self.status >= 500 or self.status == NOT_NOW


class Pending:
    """A call that was asked; the body of the `with` says what it was told."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.answer: Mapping[str, Any] = {}

    def told(self, status: int, answer: Mapping[str, Any] | None = None) -> None:
        """Note the answer."""
        self.status, self.answer = status, answer or {}


class Flight:
    """How many calls are open just now, over all clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    def change(self, by: int) -> None:
        """Count one up or down."""
        with self._lock:
            self._open += by

    @property
    def open(self) -> int:
        """Calls asked and not answered."""
        return self._open


class PromiseLog:
    """The log of one client; threads of that client share it."""

    def __init__(self, folder: Path, client: str, flight: Flight) -> None:
        self.client = client
        self._flight = flight
        self._lock = threading.Lock()
        self._number = 0
        path = folder / f"{client}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @contextmanager
    def call(
        self,
        op: str,
        *,
        job: str | None = None,
        lease: str | None = None,
        what: Mapping[str, Any],
    ) -> Iterator[Pending]:
        """Log one call; an exception out of the body leaves its end unknown."""
        with self._lock:
            self._number += 1
            number = self._number
        asked = {"n": number, "op": op, "at": time.time(), "job": job, "lease": lease}
        self._write(asked | {"what": dict(what)})
        counted = op not in IDLE
        self._flight.change(counted)
        pending = Pending()
        try:
            yield pending
        finally:
            self._flight.change(-counted)
            said = {"status": pending.status, "answer": dict(pending.answer)}
            self._write({"n": number, "told": time.time()} | said)

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(folder: Path) -> list[Call]:
    """Read the logs of all clients, in the order of asking."""
    calls: list[Call] = []
    for path in sorted(folder.glob("*.jsonl")):
        asked: dict[int, dict[str, Any]] = {}
        told: dict[int, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            (told if "told" in entry else asked)[entry["n"]] = entry
        for number, entry in asked.items():
            end = told.get(number, {})
            calls.append(
                Call(
                    client=path.stem, op=entry["op"], asked_at=entry["at"], job=entry["job"],
                    lease=entry["lease"], what=entry["what"], told_at=end.get("told"),
                    status=end.get("status"), answer=end.get("answer", {}),
                )
            )  # fmt: skip
    return sorted(calls, key=lambda call: call.asked_at)
