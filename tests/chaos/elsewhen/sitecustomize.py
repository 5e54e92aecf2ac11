"""How a Python sleeps under libfaketime: by `select`, because its own way ends with an error there.

`time.sleep` names a moment of the monotonic clock, which that library refuses once it is told to
leave this clock alone. Found by PYTHONPATH, by processes of the suite and no others.
"""

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
