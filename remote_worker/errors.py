"""Everything that can go wrong at the worker, by what it means for the job and for the daemon."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path


class WorkerError(Exception):
    """What this package raises on purpose."""


class Misconfigured(WorkerError):
    """A setting cannot work; the text says what to change."""


class Unanswered(WorkerError):
    """No answer worth believing came: asking again is the only way to know."""

    def __init__(self, text: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Refused(WorkerError):
    """The edge answered, and the answer is no."""

    def __init__(self, *, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class LeaseLost(WorkerError):
    """The job is another's by now, or nobody's: whatever is left to say about it goes unsaid."""


class Interruption(StrEnum):
    """Why a handler has to stop before its work is done."""

    #: the edge ended the lease, or it could not be renewed in time: report nothing
    LEASE_LOST = "lease lost"
    #: somebody asked for the end of the job: acknowledge it
    CANCELLED = "cancelled"
    #: the daemon stops: give the job back, the attempt does not count
    STOPPING = "stopping"
    #: said once, when there may be time left to tidy up
    SOFT_TIME_LIMIT = "soft time limit exceeded"
    TIME_LIMIT = "time limit exceeded"


class Interrupted(WorkerError):
    """The handler was stopped from outside."""

    def __init__(self, why: Interruption) -> None:
        super().__init__(why.value)
        self.why = why


class JobFailed(WorkerError):
    """The job ends as a failure, with the files that explain it."""

    def __init__(
        self,
        text: str,
        *,
        error_type: str,
        retryable: bool = False,
        files: Sequence[tuple[str, Path]] = (),
    ) -> None:
        super().__init__(text)
        self.error_type = error_type
        self.retryable = retryable
        #: artifact name and where the file lies; what does not exist is left out
        self.files = tuple(files)

    def with_files(self, files: Sequence[tuple[str, Path]]) -> "JobFailed":
        """Return the same failure with the files that explain it."""
        return JobFailed(
            str(self), error_type=self.error_type, retryable=self.retryable, files=files
        )
