"""What a job type is to the worker: a function from a context to an outcome, found by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from remote_worker.events import EventLog
from remote_worker.job import Job
from remote_worker.lease import Lease
from remote_worker.process import Interrupt
from remote_worker.redact import Redactor
from remote_worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a handler has to work with."""

    job: Job
    settings: Settings
    #: the job's own directory, removed after the report
    directory: Path
    events: EventLog
    lease: Lease
    redactor: Redactor
    #: why the handler has to stop now, or None: ask before every step that takes time
    interrupt: Interrupt

    def step(self, message: str) -> None:
        """Tell everybody what happens now."""
        self.events.append("info", message)
        self.lease.progress(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a handler made."""

    summary: str
    result: Mapping[str, object]
    #: artifact name and file; uploaded before the report
    files: tuple[tuple[str, Path], ...] = ()
    #: result key → artifact name: replaced by the artifact's reference
    references: Mapping[str, str] = field(default_factory=dict)


#: Raises JobFailed for a failure and Interrupted when it was stopped; anything else is a bug.
Handler = Callable[[Context], Outcome]
