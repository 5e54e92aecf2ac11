"""What Celery's control commands make of a remote worker: standing orders, or a clear refusal.

The order is kept in the ledger before the reply says ``ok``; the worker hears of it within seconds.
What its owner allows is the most a worker runs, whatever Celery asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from broker.bridge.nodes import Node
from broker.errors import DrawbridgeError
from broker.orders import OrderBook
from broker.records import Json

#: who the audit says gave the order
BY: Final = "celery"
_MOST: Final = 1000
_MACHINE: Final = "is set on the remote worker's own machine"
_REFUSED: Final[Mapping[str, str]] = {
    "pool_restart": f"a remote worker's program {_MACHINE}",
    "rate_limit": "a remote worker has no rate limit; bound its concurrency instead (autoscale)",
    "time_limit": f"the time limit {_MACHINE}, or by the task's own options when it is sent",
}

_Arguments = Mapping[str, Any]


class Commands:
    """Carries out what Celery orders a node to do; all but grow and shrink may come twice."""

    def __init__(self, book: OrderBook, *, queues: Sequence[str]) -> None:
        """Give orders by the book to workers of the bridged queues."""
        self._book = book
        self._queues = tuple(queues)
        self._methods: Mapping[str, Callable[[Node, _Arguments], str]] = {
            "shutdown": self._shutdown,
            "pool_grow": lambda node, said: self._grow(node, _count(said.get("n", 1))),
            "pool_shrink": lambda node, said: self._grow(node, -_count(said.get("n", 1))),
            "autoscale": self._autoscale,
            "cancel_consumer": self._cancel_consumer,
            "add_consumer": self._add_consumer,
        }

    def knows(self, method: str) -> bool:
        """Tell whether this is a command, and so no question."""
        return method in self._methods or method in _REFUSED

    def carry_out(self, node: Node, method: str, arguments: _Arguments) -> Json:
        """Do it, and return what Celery is answered: ``ok`` or ``error``."""
        if method in _REFUSED:
            return {"error": _REFUSED[method]}
        try:
            return {"ok": self._methods[method](node, arguments)}
        except (DrawbridgeError, ValueError) as error:
            return {"error": str(error)}

    def _shutdown(self, node: Node, _arguments: _Arguments) -> str:
        self._book.drain(node.worker_id, by=BY)
        return "finishes what it runs and claims no more, until `drawbridge workers resume`"

    def _grow(self, node: Node, by: int) -> str:
        slots = self._set(node, max(1, node.slots + by))
        return f"pool will {'grow' if by > 0 else 'shrink'} to {slots}"

    def _autoscale(self, node: Node, said: _Arguments) -> str:
        # Celery's own default: what is left out stays
        most = node.slots if said.get("max") is None else _count(said["max"])
        return f"autoscale now max={self._set(node, most)} min=0"

    def _set(self, node: Node, wanted: int) -> int:
        slots = min(wanted, node.own_slots)
        self._book.set_concurrency(
            node.worker_id, None if slots == node.own_slots else slots, by=BY
        )
        return slots

    def _cancel_consumer(self, node: Node, said: _Arguments) -> str:
        queue = self._queue(node, said.get("queue"))
        self._book.pause(node.worker_id, queue, by=BY)
        return f"no longer consuming from {queue}"

    def _add_consumer(self, node: Node, said: _Arguments) -> str:
        queue = self._queue(node, said.get("queue"))
        self._book.unpause(node.worker_id, queue, by=BY)
        later = f", once `drawbridge workers resume {node.worker_id}` ends its draining"
        return f"add consumer {queue}" + (later if node.draining else "")

    def _queue(self, node: Node, name: object) -> str:
        """Return a queue from which the worker could claim; refuse any other."""
        if not isinstance(name, str) or name not in self._queues:
            raise ValueError(
                f"a remote worker claims from bridged queues alone: {', '.join(self._queues)}"
            )
        if not node.allows(name):
            raise ValueError(f"the worker's token does not allow {name}; give it one that does")
        return name


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ValueError(f"{value!r} is not a number from 1 to {_MOST}")
    return value
