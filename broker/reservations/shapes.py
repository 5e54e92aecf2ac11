"""What goes into the reservations and what they answer: the shapes of the scripts' arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from broker.policy import Lane
from broker.states import Index

#: jobs per script call; Lua's stack ends near 8,000 values
BATCH: Final = 200

T = TypeVar("T")


class Sheaf(NamedTuple):
    """Waiting jobs alike in all but their members, as fill.lua reads them."""

    lane: str
    rank: int
    version: int
    #: when they become ready, epoch ms; empty is at once
    due_ms: int | str
    members: Sequence[str]

    def args(self) -> list[Any]:
        """Return it as fill.lua reads it."""
        return [self.lane, self.rank, self.version, self.due_ms, len(self.members), *self.members]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the ledger says a live job belongs."""

    id: str
    index: Index
    #: ready again or lease ends, epoch ms; unused for ready
    at_ms: int
    version: int
    lane: Lane
    member: str
    priority: int
    lease_id: str = ""
    worker_id: str = ""
    lease_ms: int = 0
    cancel: str = ""
    json: str = ""

    def args(self) -> list[Any]:
        """Return it as admit.lua reads it."""
        return [
            self.id, str(self.index), self.at_ms, self.version, self.lane.key, self.lane.spec(),
            self.member, -self.priority, self.lease_id, self.worker_id, self.lease_ms,
            self.cancel, self.json,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reserved:
    """What reserve.lua held: the server's clock, how much is overdue, and the job ids."""

    now_ms: int
    overdue: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease extended in Redis alone."""

    deadline_ms: int
    job: str
    cancel: str


@dataclass(frozen=True, slots=True)
class Due:
    """A grant or lease past its deadline."""

    id: str
    lease_id: str
    index: Index


def parts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """Cut what one call may not hold into several."""
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))
