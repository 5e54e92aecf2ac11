"""An ordinary Celery application with a worker of its own; knows nothing of Drawbridge."""

import os
from typing import Any

from celery import Celery

app = Celery("local", broker=os.environ.get("APP_BROKER"), backend=os.environ.get("APP_BACKEND"))
app.conf.task_default_queue = "local"


@app.task(name="local.prepare")
def prepare(word: str) -> dict[str, str]:
    """Return what a later link gets."""
    return {"word": word}


@app.task(name="local.report")
def report(result: dict[str, Any], title: str) -> dict[str, Any]:
    """Build on what an earlier link returned."""
    return {"title": title, "changed": result["changedFiles"]}


@app.task(name="local.collect")
def collect(results: list[Any]) -> list[Any]:
    """Be the body of a chord."""
    return results
