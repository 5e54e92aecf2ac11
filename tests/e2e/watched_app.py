"""What an orchestrator gives its Flower and its own workers: an app that knows the remote tasks."""

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("watched", broker=os.environ["APP_BROKER"], backend=os.environ["APP_BACKEND"])


@app.task(name="child")
def child(gate: str = "", **_payload: Any) -> int:
    """Do what the remote task of that name does: run until a file is there."""
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    return 1
