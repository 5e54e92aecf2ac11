"""Threads that must live: they repeat one step, and outlive every error of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import amqp
import redis
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from broker.errors import Unavailable

logger = logging.getLogger(__name__)

#: pause after the first failure, doubled with each further one
PAUSE_S: Final = 0.1
PAUSE_CAP_S: Final = 2.0
#: how long steps that run may take to end, all together
STOP_S: Final = 5.0


def is_outage(error: Exception) -> bool:
    """Tell a store or a broker that is away from one that refuses what it was given."""
    away = (
        Unavailable, OSError, OperationalError, redis.ConnectionError, redis.TimeoutError,
        sa.exc.OperationalError, sa.exc.InterfaceError,
    )  # fmt: skip
    # py-amqp has a dozen classes for "the connection is gone"; a channel's errors, and a message
    # that is not confirmed, are about what was asked
    refusals = (amqp.ChannelError, amqp.exceptions.MessageNacked)
    gone = isinstance(error, amqp.AMQPError) and not isinstance(error, refusals)
    return gone or isinstance(error, away)


class Loop:
    """One thread that repeats ``step`` until stopped; ``step`` returns the pause in seconds.

    A step that raises is logged and tried again, after a growing pause. Start and stop may be
    called twice, in any order.
    """

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self.name = name
        self.failures = 0
        #: when the last step that raised nothing ended, monotonic
        self.passed_at = time.monotonic()
        self._step = step
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after its step."""
        self._stopping.set()
        self._woken.set()

    def wake(self) -> None:
        """End the pause that it makes, or is about to make; not one after a failure."""
        self._woken.set()

    def join(self, timeout_s: float = STOP_S) -> bool:
        """Wait for the thread's end; False when its step takes too long."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        thread.join(max(0.0, timeout_s))
        return not thread.is_alive()

    def _run(self) -> None:
        row = 0
        while True:
            self._woken.clear()
            if self._stopping.is_set():
                return
            try:
                pause = self._step()
                self.passed_at = time.monotonic()
                if row:
                    logger.info("%s works again", self.name, extra={"action": "loop"})
                row = 0
                self._woken.wait(pause)
            except Exception as error:  # noqa: BLE001  a loop that must live: logged, counted, tried again
                self.failures += 1
                self._tell(error, row)
                self._stopping.wait(min(PAUSE_CAP_S, PAUSE_S * 2.0**row))
                row = min(row + 1, 16)

    def _tell(self, error: Exception, row: int) -> None:
        extra = {"action": "loop", "loop": self.name, "failures": self.failures}
        if is_outage(error):
            if not row:  # an outage is told once, not once a try
                logger.warning("%s waits: %s", self.name, error, extra=extra)
        else:
            logger.error("%s failed", self.name, exc_info=error, extra=extra)


def every(pause_s: float, name: str, do: Callable[[], object]) -> Loop:
    """Make a loop that does the same again after a pause."""

    def step() -> float:
        do()
        return pause_s

    return Loop(name, step)
