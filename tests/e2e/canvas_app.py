"""An orchestrator's app whose tasks run on ordinary and on remote workers; knows no Drawbridge."""

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery


class Broken(Exception):
    """An exception of the orchestrator's own."""


def add(*numbers: Any) -> int:
    """Add what may be numbers and lists of numbers."""
    return sum(sum(one) if isinstance(one, list) else one for one in numbers)


def nothing(*_: Any) -> None:
    """Do something whose result nobody wants."""


def fail(*numbers: Any) -> None:
    """Fail with an exception of the orchestrator's own."""
    raise Broken(f"broken {add(*numbers)}")


def value_error(*_: Any) -> None:
    """Fail with an exception that everybody knows."""
    raise ValueError("no value")


def _write(file: str, said: list[Any]) -> None:
    draft = Path(f"{file}.draft")
    draft.write_text(json.dumps(said))
    draft.replace(file)


def make(broker: str | None, backend: str | None) -> Celery:
    """Return the app, as a process of its own would have it."""
    app = Celery("canvas", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        task_default_queue="local",
        result_extended=True,
        # by which a chord is polled on a backend without counters
        result_chord_retry_interval=0.2,
        broker_transport_options={"confirm_publish": True},
    )
    for function in (add, fail, value_error):
        app.task(function, name=f"canvas.{function.__name__}", shared=False)
    app.task(nothing, name="canvas.nothing", ignore_result=True, shared=False)

    @app.task(name="canvas.hand_over", bind=True, shared=False)
    def hand_over(self: Any, number: int, queue: str) -> None:
        raise self.replace(app.signature("canvas.add", args=(number, 100), queue=queue))

    @app.task(name="canvas.note", shared=False)
    def note(task_id: str, *, file: str) -> None:
        """Write down what an error callback of the old style is given."""
        _write(file, [task_id])

    @app.task(name="canvas.note_error", shared=False)
    def note_error(request: Any, error: Exception, traceback: str, *, file: str) -> None:
        """Write down what an error callback of the new style is given."""
        _write(file, [type(error).__name__, str(error), bool(traceback), request.task, request.id])

    return app


app = make(os.environ.get("APP_BROKER"), os.environ.get("APP_BACKEND"))
