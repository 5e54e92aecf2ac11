"""Celery's own tasks that land in bridged queues, where a bridge must do otherwise than a worker.

``celery.map``, ``starmap`` and so ``chunks``: an ordinary worker runs the items one after the other
in its own process. A bridge has none of the code, and should run none of it: the message replaces
itself by a chord of one task an item, sent to the queue it came from, whose body gives the list of
results. A failing item fails it as a chord fails; it needs a backend that chords work with.

``celery.chord_unlock`` lifts a ban of the whole process while it joins (``allow_join_result``) and
then restores what it found: of two of them in two threads one restores it in the other's join.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Final

from celery import Celery, chord, group

from broker.bridge import maintenance

UNLOCK: Final = "celery.chord_unlock"
#: the positional arguments that an item stands for
_ARGUMENTS: Final[Mapping[str, Callable[[Any], tuple[Any, ...]]]] = MappingProxyType(
    {"celery.map": lambda item: (item,), "celery.starmap": tuple}
)
_MARK: Final = "drawbridge"


def adapt(app: Celery, queues: Sequence[str]) -> None:
    """Adapt the app's own to bridged queues; a second time nothing changes."""
    app.finalize()
    for name, arguments in _ARGUMENTS.items():
        stock = app.tasks[name]
        if hasattr(stock, _MARK):
            continue
        run = _spread(app, stock.run, arguments, tuple(queues))
        app.tasks.unregister(name)
        app.task(run, bind=True, name=name, shared=False, lazy=False, **{_MARK: True})
    unlock = app.tasks[UNLOCK]
    if not hasattr(unlock, _MARK):
        unlock.run = _one_at_a_time(unlock.run)
        setattr(unlock, _MARK, True)


def _spread(
    app: Celery,
    stock: Callable[..., Any],
    arguments: Callable[[Any], tuple[Any, ...]],
    queues: tuple[str, ...],
) -> Callable[..., Any]:
    def run(self: Any, task: Any, it: Sequence[Any]) -> Any:
        queue = _queue(self.request.delivery_info, queues)
        inner = app.signature(task)
        if queue is None and inner.task in app.tasks:
            return stock(task, it)
        if not it:
            return []
        to = queue or queues[0]
        header = [inner.clone(args=arguments(item)).set(queue=to) for item in it]
        body = app.tasks["celery.accumulate"].s(index=0).set(queue=maintenance.QUEUE)
        raise self.replace(chord(group(header, app=app), body, app=app))

    return run


def _queue(delivery: Mapping[str, Any] | None, queues: tuple[str, ...]) -> str | None:
    name = (delivery or {}).get("routing_key")
    return name if name in queues else None


def _one_at_a_time(run: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    @wraps(run)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return run(*args, **kwargs)

    return alone
