"""How one row of the outbox is told to Celery, by Celery's own calls (celery.md §2.2).

Stores are idempotent and may be repeated; links, the next link of a chain, errbacks and events are
not, so their ids are made of the job and not drawn: a repeat is at least recognisable.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery, states
from celery._state import _task_stack
from celery.app.task import Context, get_actual_ignore_result
from celery.canvas import group

from broker.bridge.announcer import Announcer
from broker.bridge.failures import failure, revocation
from broker.records import Effect, Job, Json

#: kinds that may be told again without anybody noticing
REPEATABLE: Final = frozenset({"state", "store", "event"})
#: kinds that talk to the result backend; the others to the Celery broker
BACKEND_KINDS: Final = frozenset({"state", "store", "chord"})

#: what a task has of its message's body; a header of that name is somebody else's
_OF_BODY: Final = frozenset({"callbacks", "errbacks", "chain", "chord"})

#: a Celery message as kept with its job
Envelope = Mapping[str, Any]


def sent_id(job: Job, kind: str, index: int) -> str:
    """Return the id of the task that a link or errback becomes, the same at every repeat."""
    return str(uuid.uuid5(uuid.UUID(job.id), f"{job.run}:{kind}:{index}"))


@dataclass(frozen=True, slots=True)
class _Told:
    """What the calls of Celery need of one effect."""

    job: Job
    data: Mapping[str, Any]
    task: Any
    backend: Any
    context: Context

    @property
    def stores(self) -> bool:
        """Whether the result of a success is wanted."""
        return not get_actual_ignore_result(self.task, self.context)

    @property
    def stores_errors(self) -> bool:
        """Whether a failure, a retry or a revoke is wanted: Celery asks the same of all three."""
        return self.stores or bool(self.task.store_errors_even_if_ignored)

    @property
    def value(self) -> Json:
        """What ``get()`` returns (decision 17)."""
        return self.job.result_summary if self.job.result is None else self.job.result

    @property
    def publishing(self) -> dict[str, Any]:
        """Options of every follow-up."""
        context, conf = self.context, self.task.app.conf
        inherits = conf.task_inherit_parent_priority
        return {
            "parent_id": self.job.task_id,
            "root_id": context.root_id or self.job.task_id,
            "priority": context.delivery_info.get("priority") if inherits else None,
        }


class Settler:
    """Tells Celery effects; used by one thread, since result backends are per thread."""

    def __init__(
        self, app: Celery, announcer: Announcer, *, node_of: Callable[[str | None], str]
    ) -> None:
        """Tell through the app; ``node_of`` names the node of a worker, of None the bridge's."""
        self._app = app
        self._announcer = announcer
        self._node_of = node_of
        self._remote: dict[str, Any] = {}
        self._by_kind: Mapping[str, Callable[[_Told], None]] = {
            "state": self._state,
            "store": self._store,
            "link": self._link,
            "chain": self._chain,
            "chord": self._chord,
            "errback": self._errback,
        }

    def settle(self, effect: Effect, job: Job, envelope: Envelope | None) -> None:
        """Tell one effect; events are kept until the announcer is flushed.

        May raise whatever backends and brokers raise; nothing is known then.
        """
        if effect.kind == "event":
            self._event(effect.data, job)
            return
        task = self._app.tasks.get(job.type) or self._stand_in(job.type)
        context = self._context(job, envelope or {}, effect.data)
        told = _Told(job, effect.data, task, task.backend, context)
        with _current(task, context):
            self._by_kind[effect.kind](told)

    def _context(self, job: Job, envelope: Envelope, data: Mapping[str, Any]) -> Context:
        properties = envelope.get("properties") or {}
        fields = {
            **_plain(envelope.get("headers") or {}),
            "id": job.task_id,
            "task": job.type,
            "args": envelope.get("args") or [],
            "kwargs": envelope.get("kwargs") if envelope else dict(job.payload),
            "retries": data.get("retries", job.retries),
            "called_directly": False,
            "is_eager": False,
            "delivery_info": {**(envelope.get("delivery_info") or {}), "is_eager": False},
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._node_of(data.get("worker")),
            **(envelope.get("embed") or {}),
        }
        if "priority" in properties:
            fields["delivery_info"]["priority"] = properties["priority"]
        return Context(fields)

    def _stand_in(self, name: str) -> Any:
        """Return a task of that name which this app does not know."""
        if name not in self._remote:
            kind = type("RemoteTask", (self._app.Task,), {"name": name, "typing": False})
            self._remote[name] = kind()
        return self._remote[name]

    def _event(self, data: Mapping[str, Any], job: Job) -> None:
        fields = {**data["fields"], "uuid": job.task_id}
        self._announcer.task(data["type"], self._node_of(data["worker"]), fields, at=data["at"])

    def _state(self, told: _Told) -> None:
        task_id, state = told.job.task_id, told.data["state"]
        if not (told.stores_errors if state == states.RETRY else told.stores):
            return
        if state == states.RETRY:
            error = told.data.get("error") or {}
            told.backend.mark_as_retry(
                task_id, failure(error), error.get("traceback"), request=told.context
            )
            return
        meta = told.data.get("meta") or {"pid": None, "hostname": told.context.hostname}
        told.backend.store_result(task_id, meta, state, request=told.context)

    def _store(self, told: _Told) -> None:
        state, task_id = told.data["state"], told.job.task_id
        value, traceback, wanted = self._outcome(told)
        if not wanted:
            return
        if state == states.SUCCESS:
            told.context._children = self._children(told)  # noqa: SLF001  what the backend reads
        told.backend.store_result(task_id, value, state, traceback=traceback, request=told.context)

    def _outcome(self, told: _Told) -> tuple[Any, str | None, bool]:
        """Return value, traceback and whether anybody wants them."""
        if told.data["state"] == states.SUCCESS:
            return told.value, None, told.stores
        if told.data["state"] == states.REVOKED:
            return revocation(told.data.get("reason") or ""), None, told.stores_errors
        error = told.data.get("error") or {}
        return failure(error), error.get("traceback"), told.stores_errors

    def _children(self, told: _Told) -> list[Any]:
        """Name what the links and the chain have become, as stock Celery's trail does."""
        result = self._app.AsyncResult
        links = list(enumerate(told.context.callbacks or ()))
        children = [result(_link_id(told.job, link, i)) for i, link in links if _is_group(link)]
        single = [result(_link_id(told.job, link, i)) for i, link in links if not _is_group(link)]
        if len(links) > 1 and single:
            # Celery sends several links as one group, and that is the child one sees
            children.append(self._app.GroupResult(sent_id(told.job, "links", 0), single))
        else:
            children += single
        if told.context.chain:
            following = (told.context.chain[-1].get("options") or {}).get("task_id")
            children += [result(following)] if following else []
        return children

    def _link(self, told: _Told) -> None:
        index = told.data["index"]
        link = told.context.callbacks[index]
        signature = self._app.signature(link)
        options = dict(told.publishing)
        if not isinstance(signature, group):
            options["task_id"] = _link_id(told.job, link, index)
        self._app.amqp._retry_publish(  # noqa: SLF001  as Celery's own tracer does
            signature.apply_async, (told.value,), **options
        )

    def _chain(self, told: _Told) -> None:
        chain = told.context.chain
        if not chain:
            return
        if told.data.get("failed"):
            error = told.data.get("error") or {}
            told.backend._fail_chain(  # noqa: SLF001  mark_as_failure would store and call back too
                chain, failure(error), error.get("traceback"), store_result=told.stores_errors
            )
            return
        self._app.amqp._retry_publish(  # noqa: SLF001  as Celery's own tracer does
            self._app.signature(chain[-1]).apply_async,
            (told.value,),
            chain=chain[:-1],
            **told.publishing,
        )

    def _chord(self, told: _Told) -> None:
        if told.context.chord:
            value, _, _ = self._outcome(told)
            told.backend.on_chord_part_return(told.context, told.data["state"], value)

    def _errback(self, told: _Told) -> None:
        index = told.data["index"]
        errback = dict(told.context.errbacks[index])
        options = {"task_id": sent_id(told.job, "errback", index), **(errback.get("options") or {})}
        told.context.errbacks = [{**errback, "options": options}]
        error = told.data.get("error") or {}
        told.backend._call_task_errbacks(  # noqa: SLF001  as mark_as_failure does
            told.context, failure(error), error.get("traceback")
        )


def _plain(headers: Mapping[str, Json]) -> dict[str, Json]:
    """Leave out what Celery would take for something of its own: nobody could be told then."""
    plain = {
        name: value
        for name, value in headers.items()
        if name not in _OF_BODY and not name.startswith("_")
    }
    if not isinstance(plain.get("stamps"), (dict, type(None))):
        del plain["stamps"]
    return plain


def _link_id(job: Job, link: Mapping[str, Any], index: int) -> str:
    frozen = (link.get("options") or {}).get("task_id")
    return str(frozen or sent_id(job, "link", index))


def _is_group(link: Mapping[str, Any]) -> bool:
    return link.get("task") == "celery.group"


@contextmanager
def _current(task: Any, context: Context) -> Iterator[None]:
    """Make a task the current one, so that what it sends finds parent, root and stamps."""
    _task_stack.push(task)
    task.request_stack.push(context)
    try:
        yield
    finally:
        task.request_stack.pop()
        _task_stack.pop()
