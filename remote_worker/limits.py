"""How much a job's child may take of this machine, and what it is called when it takes more."""

from dataclasses import dataclass

from remote_worker.errors import WorkerError

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
