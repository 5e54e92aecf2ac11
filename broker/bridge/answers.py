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
            "active": lambda node, _arguments: [_request(node, job) for job in node.active],
            "reserved": lambda _node, _arguments: [],
            "scheduled": lambda _node, _arguments: [],
            "revoked": lambda _node, _arguments: [],
            "registered": lambda node, _arguments: sorted(_types(node)),
            "active_queues": lambda _node, _arguments: [_queue(name) for name in self._queues],
            "conf": lambda node, _arguments: _plain(node.hello),
            "report": lambda node, _arguments: {"ok": f"{IDENT} {node.worker_id}"},
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
            "pid": None,
            "clock": str(self._clock()),
            "uptime": int(time.time() - node.first_seen) if node.first_seen else 0,
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


def _request(node: Node, job: Job) -> Json:
    """Describe a running job as Celery's ``Request.info`` describes a task."""
    return {
        "id": job.task_id,
        "name": job.type,
        "type": job.type,
        "args": [],
        "kwargs": repr(dict(job.payload))[:REPR_MAX],
        "hostname": node.name,
        "time_start": job.started_at.timestamp() if job.started_at else None,
        "acknowledged": True,
        "delivery_info": {"routing_key": job.queue, "priority": job.priority},
        "worker_pid": None,
    }


def _types(node: Node) -> list[str]:
    said = node.hello.get("types")
    return [str(one) for one in said] if isinstance(said, list) else []


def _queue(name: str) -> Json:
    make: Any = Queue
    exchange: Any = Exchange
    return dict(make(name, exchange(name), routing_key=name).as_dict(recurse=True))


def _plain(hello: Mapping[str, Any]) -> Json:
    return {str(name): value for name, value in hello.items()}
