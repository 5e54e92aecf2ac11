"""What a job type is to the worker: a function from a context to an outcome, found by its name.

This module is what a package with a job type of its own needs to know; it stays as it is within a
major version. `deploy/examples/handlers` is a whole one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_worker import disk, isolation
from remote_worker.box import Box
from remote_worker.errors import Interrupted, Interruption, JobFailed
from remote_worker.events import EventLog
from remote_worker.job import Job
from remote_worker.lease import Lease
from remote_worker.limits import TOO_LARGE, LimitExceeded, timed_out
from remote_worker.process import GRACE_S, Command, Interrupt, Sink, run
from remote_worker.redact import Redactor
from remote_worker.settings import Settings

_MAX_PROGRESS = 200
_MAX_META = 4096
_STATE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
#: of Celery's own: they say that a task waits or has ended
_CELERY_STATES = frozenset(
    {
        "PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "RETRY", "REJECTED",
        "IGNORED",
    },
)  # fmt: skip


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
    #: between the word that a program shall end and its end
    grace_s: float = GRACE_S

    @property
    def payload(self) -> Mapping[str, object]:
        """Return what the sender wrote, unchecked."""
        return self.job.payload

    @property
    def box(self) -> Box:
        """Return what shuts in whatever runs for this job."""
        return isolation.box(self.settings, own=self.directory)

    def step(self, message: str) -> None:
        """Tell everybody what happens now."""
        self.events.append("info", message)
        self.progress(message)

    def progress(
        self,
        message: str,
        percent: float | None = None,
        *,
        state: str | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> None:
        """Say how far the work is, within seconds and without a line in the log.

        For Celery that is a state, PROGRESS or ``state``, with ``meta``: as of ``update_state``.

        Raises ValueError when the edge would refuse them, and with them the heartbeat.
        """
        words = message.split("\n", 1)[0]
        more: dict[str, object] = {}
        if state is not None:
            if not _STATE.fullmatch(state) or state in _CELERY_STATES:
                raise ValueError(f"{state!r} can be no state of a running task")
            more["state"] = state
        if meta is not None:
            more["meta"] = self.redactor.value(dict(meta))
            if len(json.dumps(more["meta"])) > _MAX_META:
                raise ValueError(f"meta is longer than {_MAX_META} bytes")
        self.lease.progress(self.redactor.text(words)[:_MAX_PROGRESS], percent, more)

    def go_on(self) -> None:
        """Raise Interrupted when the work has to stop; let it through, the daemon knows what."""
        why = self.interrupt()
        if why is not None:
            raise Interrupted(why)

    def check_room(self) -> None:
        """Fail when the job's directory is larger than it may be, however fast it grew."""
        why = disk.breach(self.directory, limits=self.settings.limits)
        if why is not None:
            raise JobFailed(why, error_type=TOO_LARGE)

    @property
    def checkpoint(self) -> object:
        """Return what the job's holder before this one left for the next, or None."""
        return self.job.checkpoint

    def leave(self, checkpoint: object) -> None:
        """Leave a JSON value of up to 64 KiB to the next holder, should this one give back."""
        self.lease.checkpoint = checkpoint

    def environment(self) -> dict[str, str]:
        """Return what a child gets to see: a HOME no earlier job has seen, and the job's names."""
        home, tmp = self.directory / "home", self.directory / "tmp"
        home.mkdir(exist_ok=True)
        tmp.mkdir(exist_ok=True)
        fence = self.job.fence
        return {
            **self.settings.pass_environment,
            "PATH": self.settings.path,
            "HOME": str(home),
            "TMPDIR": str(tmp),
            "LANG": "C.UTF-8",
            "BRIDGE_JOB_ID": self.job.id,
            "BRIDGE_ATTEMPT": str(self.job.attempt),
            **({} if fence is None else {"BRIDGE_FENCE": str(fence)}),
        }

    def run(
        self,
        argv: Sequence[str],
        *,
        sink: Sink,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Path | None = None,
        time_limit_s: float | None = None,
    ) -> int:
        """Run a program shut in and limited, and return its exit code; nothing of it is left.

        Raises JobFailed when it took more than it may, and Interrupted when it had to be stopped.
        """
        longest = self.settings.time_limit_s
        box = self.box
        command = Command(
            argv=argv,
            cwd=cwd or self.directory,
            environment=self.environment() if environment is None else environment,
            time_limit_s=longest if time_limit_s is None else min(time_limit_s, longest),
            stdin=stdin,
            limits=self.settings.limits,
            workspace=self.directory,
            box=box,
            grace_s=self.grace_s,
        )
        # Whatever we made in there is for the program, and it may be another user's.
        box.give(self.directory)
        try:
            return run(command, sink=sink, interrupt=self.interrupt)
        except LimitExceeded as error:
            raise JobFailed(f"{argv[0]}: {error}", error_type=error.error_type) from None
        except Interrupted as stop:
            why = stop.why
            if why is Interruption.SOFT_TIME_LIMIT:
                # what did not end between the limits has exceeded the hard one
                why = self.interrupt() or why
            raise timed_out(why) or Interrupted(why) from None


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
