"""How much a job's child may take of this machine, and what it is called when it takes more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from remote_worker.errors import Interruption, JobFailed, WorkerError

MIB = 1024 * 1024
GIB = 1024 * MIB

#: What a job fails with when its directory grew too large.
TOO_LARGE = "workspace_too_large"


class LimitExceeded(WorkerError):
    """A program took more than it may have; it was stopped for it."""

    def __init__(self, text: str, *, error_type: str) -> None:
        super().__init__(text)
        self.error_type = error_type


class TimeLimitExceeded(LimitExceeded):
    """The program was still running when its time was over."""

    def __init__(self, text: str) -> None:
        super().__init__(text, error_type="time_limit_exceeded")


#: What a job fails with when its task's own time is over: the names are Celery's.
TIMED_OUT: Final[Mapping[Interruption, str]] = {
    Interruption.SOFT_TIME_LIMIT: "celery.exceptions.SoftTimeLimitExceeded",
    Interruption.TIME_LIMIT: "celery.exceptions.TimeLimitExceeded",
}


class TimeLimits:
    """The time a task itself gave a job, counted from here on."""

    def __init__(
        self, *, hard_s: float | None, soft_s: float | None, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        now = clock()
        self._hard_s, self._soft_s = hard_s, soft_s
        self._hard_at = None if hard_s is None else now + hard_s
        self._soft_at = None if soft_s is None else now + soft_s

    def due(self) -> Interruption | None:
        """Say which limit is over; of the soft one that is said once, like a signal."""
        now = self._clock()
        if self._hard_at is not None and now >= self._hard_at:
            return Interruption.TIME_LIMIT
        if self._soft_at is not None and now >= self._soft_at:
            self._soft_at = None
            return Interruption.SOFT_TIME_LIMIT
        return None

    def grace_s(self, usual_s: float) -> float:
        """Return how long a child may take to end: what lies between the two limits at most."""
        if self._hard_s is None or self._soft_s is None or self._soft_s >= self._hard_s:
            return usual_s
        return min(usual_s, self._hard_s - self._soft_s)


def timed_out(why: Interruption) -> JobFailed | None:
    """Return the failure that an interruption stands for, when it is a time limit."""
    error_type = TIMED_OUT.get(why)
    return None if error_type is None else JobFailed(f"{why}", error_type=error_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one child and all it starts may take; None is no limit."""

    #: of all its processes together, looked at several times a second
    memory_bytes: int | None = None
    #: of each process
    cpu_s: int | None = None
    #: processes and threads together
    tasks: int | None = 4096
    #: of each process
    open_files: int | None = 4096
    #: of each file
    file_bytes: int | None = 10 * GIB
    #: of the job's whole directory
    workspace_bytes: int | None = 10 * GIB
    workspace_files: int | None = 1_000_000


#: For programs of our own choice on data of our own.
UNLIMITED = Limits(
    tasks=None, open_files=None, file_bytes=None, workspace_bytes=None, workspace_files=None
)
