"""What a process remembers of a queue's lanes, and how it says which of them a worker may see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from cachetools import LRUCache

from broker.policy import Lane

#: what a worker may see; equal ones see the same
Sight = Callable[[Lane], bool]
#: sights kept in mind for each queue
SIGHTS: Final = 256


@dataclass(slots=True)
class KnownLanes:
    """The lanes of one generation, up to a version; threads that share it hold a lock."""

    generation: int
    version: int = 0
    lanes: dict[str, Lane] = field(default_factory=dict)
    _told: LRUCache[Sight, tuple[str, str]] = field(default_factory=lambda: LRUCache(SIGHTS))

    def learn(self, specs: Iterable[str], version: int) -> None:
        """Add lanes, which are all there were up to a version."""
        for spec in specs:
            lane = Lane.from_spec(spec)
            self.lanes[lane.key] = lane
        self.version = version
        self._told.clear()

    def told(self, sight: Sight) -> tuple[str, str]:
        """Say which lanes are seen: ``only`` those named or all ``but`` them, whatever is shorter.

        A claim of an unrestricted worker says nothing of a thousand lanes.
        """
        if sight not in self._told:
            keys: dict[bool, list[str]] = {True: [], False: []}
            for key, lane in self.lanes.items():
                keys[sight(lane)].append(key)
            only = len(keys[True]) <= len(keys[False])
            self._told[sight] = ("only" if only else "but", "".join(keys[only]))
        return self._told[sight]

    def allows(self, sight: Sight, key: str) -> bool:
        """Tell whether a lane is known and seen.

        What the scripts found is judged once more: a damaged lane table may count anew, and a lane
        that was never judged is among ``but`` the others. Its job is left to lapse.
        """
        lane = self.lanes.get(key)
        return lane is not None and sight(lane)
