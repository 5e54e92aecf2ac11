"""What a remote worker's node answers to Celery's remote control; no wire, no broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from kombu.entity import Exchange, Queue

from broker.bridge.nodes import IDENT, Node
from broker.records import Job, Json

#: older names that Celery still sends
_ALIASES: Final = MappingProxyType(
    {
        "dump_conf": "conf",
        "dump_schedule": "scheduled",
        "dump_reserved": "reserved",
        "dump_active": "active",
        "dump_revoked": "revoked",
        "dump_tasks": "registered",
    },
)
#: questions between ordinary workers; a node takes no part in them
_UNANSWERED: Final = frozenset({"hello", "election", "heartbeat"})
#: orders whose effect is there already
_DONE: Final = frozenset({"enable_events", "disable_events"})
REVOKES: Final = frozenset({"revoke", "terminate", "revoke_by_stamped_headers"})
REPR_MAX: Final = 1024


class Answers:
    """Answers for any node."""

    def __init__(self, *, queues: Sequence[str], clock: Callable[[], int]) -> None:
        """Know the bridged queues and Celery's logical clock."""
        self._queues = queues
        self._clock = clock
        self._methods: Mapping[str, Callable[[Node, Mapping[str, Any]], Json]] = {
            "ping": lambda _node, _arguments: {"ok": "pong"},
            "active": lambda node, said: [
                _request(node, job, safe=bool(said.get("safe"))) for job in node.active
            ],
            "reserved": lambda _node, _arguments: [],
            "scheduled": lambda _node, _arguments: [],
            "revoked": lambda _node, _arguments: [],
            "registered": lambda node, _arguments: sorted(_types(node)),
            "active_queues": lambda node, _arguments: [
                _queue(name) for name in self._queues if node.claims_from(name)
            ],
            "conf": lambda node, _arguments: _plain(node.hello),
            "report": lambda node, _arguments: {"ok": _report(node)},
            "clock": lambda _node, _arguments: {"clock": self._clock()},
            "query_task": _query_task,
            "stats": self._stats,
        }

    def to(self, node: Node, method: str, arguments: Mapping[str, Any]) -> Json | None:
        """Answer for a node; None when it does not answer at all."""
        method = _ALIASES.get(method, method)
        if method in _UNANSWERED:
            return None
        if method in REVOKES:
            return {"ok": "revoke is recorded"}
        if method in _DONE:
            return {"ok": "task events of remote workers are always on"}
        found = self._methods.get(method)
        if found is None:
            return {"error": f"a remote worker has no {method}; see its own machine"}
        return found(node, arguments)

    def _stats(self, node: Node, _arguments: Mapping[str, Any]) -> Json:
        return {
            "total": {"jobs": node.processed},
            "pid": node.hello.get("pid"),
            "clock": str(self._clock()),
            "uptime": int(time.time() - node.started) if node.started else 0,
            "pool": {
                "implementation": "drawbridge",
                "max-concurrency": node.slots,
                "processes": [],
            },
            "broker": {"transport": "https", "hostname": "the Drawbridge edge"},
            "prefetch_count": 0,
            "rusage": {},
        }


def _query_task(node: Node, arguments: Mapping[str, Any]) -> Json:
    wanted = arguments.get("ids") or ()
    ids = {wanted} if isinstance(wanted, str) else {str(one) for one in wanted}
    return {
        job.task_id: ["active", _request(node, job)] for job in node.active if job.task_id in ids
    }


def _request(node: Node, job: Job, *, safe: bool = False) -> Json:
    """Describe a running job as Celery's ``Request.info`` does; ``safe`` means as text.

    A payload may be a megabyte, of each of a thousand nodes: what is long is cut, and so is text.
    """
    kwargs = dict(job.payload)
    given = kwargs.pop("args", [])
    args = given if isinstance(given, list) else [given]
    safe = safe or len(repr(job.payload)) > REPR_MAX
    return {
        "id": job.task_id,
        "name": job.type,
        "type": job.type,
        "args": repr(tuple(args))[:REPR_MAX] if safe else args,
        "kwargs": repr(kwargs)[:REPR_MAX] if safe else kwargs,
        "hostname": node.name,
        "time_start": job.started_at.timestamp() if job.started_at else None,
        "acknowledged": True,
        "delivery_info": {
            "exchange": "",
            "routing_key": job.queue,
            "priority": job.priority,
            "redelivered": job.attempt > 1,
        },
        "worker_pid": node.hello.get("pid"),
    }


def _report(node: Node) -> str:
    """Say in words what it is, as an ordinary worker's bug report does."""
    hello = {name: value for name, value in sorted(node.hello.items()) if value is not None}
    lines = [f"{name}: {value!r}" for name, value in hello.items()]
    return "\n".join([f"software -> {IDENT} {node.worker_id}", *lines])


def _types(node: Node) -> list[str]:
    said = node.hello.get("types")
    return [str(one) for one in said] if isinstance(said, list) else []


def _queue(name: str) -> Json:
    make: Any = Queue
    exchange: Any = Exchange
    return dict(make(name, exchange(name), routing_key=name).as_dict(recurse=True))


def _plain(hello: Mapping[str, Any]) -> Json:
    return {str(name): value for name, value in hello.items()}
