"""The native side: an ordinary Celery worker that does nothing, as fast as it can."""

import os
import time

from celery import Celery

app = Celery("native", broker=os.environ.get("APP_BROKER"), backend=os.environ.get("APP_BACKEND"))
app.conf.worker_send_task_events = True
app.conf.task_track_started = True


@app.task(name="native.noop")
def noop() -> dict[str, float]:
    """Say when it started."""
    return {"started": time.time()}
