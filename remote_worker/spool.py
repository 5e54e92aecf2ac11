"""What is known to be finished but not yet reported, on the disk: a report outlives its daemon.

One JSON file a job, written whole or not at all, beside the job's own directory which holds the
files the report names. The report of a job is sent from its record and from nothing else, whether
the daemon that ran it or the one after it sends it.
"""

import fcntl
import json
import logging
import os
import stat
import threading
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from remote_worker import trees
from remote_worker.account import Account
from remote_worker.artifacts import Artifact
from remote_worker.errors import Misconfigured
from remote_worker.job import Job

log = logging.getLogger(__name__)

_VERSION = 1
#: what is being written; a daemon that is killed meanwhile leaves it
_DRAFT = ".tmp"


class Ending(StrEnum):
    """The endings a worker can give a job."""

    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a job ended here."""

    ending: Ending
    #: the summary, the error message, or the word on a cancel
    text: str = ""
    result: dict[str, object] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    #: where in the result the reference to an uploaded artifact goes: key → artifact name
    references: dict[str, str] = field(default_factory=dict)
    error_type: str = ""
    retryable: bool = False
    #: what the next holder of a released job gets
    checkpoint: object = None


class Spool:
    """The work directory of one daemon."""

    def __init__(self, work_dir: Path, *, account: Account | None = None) -> None:
        """Let jobs pass through to what is theirs, should they be another user's."""
        self._passable = 0o011 if account is not None else 0
        self._reports = work_dir / "spool"
        self._jobs = work_dir / "jobs"
        self._lock_file = work_dir / "lock"
        self._lock: int | None = None
        #: directories that could not be removed: somebody may still have written in them
        self._stuck: set[Path] = set()
        self._clearing = threading.Lock()

    def open(self) -> None:
        """Make the directories ours alone; a second daemon on them is refused."""
        for directory in (self._reports, self._jobs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._let_through(self._jobs)
        self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise Misconfigured(
                f"work directory {self._lock_file.parent} is used by another daemon: stop it,"
                " or give this one its own --work-dir"
            ) from None

    def close(self) -> None:
        """Leave the directories to the next daemon."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def directory(self, job: Job) -> Path:
        """Return the job's own new, empty directory."""
        path = self._jobs / _name(job)
        with self._clearing:
            self._remove(path)
            path.mkdir(mode=0o700)
        self._let_through(path)
        return path

    def _let_through(self, directory: Path) -> None:
        """Let others reach what is theirs in there; what else is in there they cannot even list."""
        if self._passable:
            directory.chmod(stat.S_IMODE(directory.stat().st_mode) | self._passable)

    def put(self, job: Job, report: Report) -> None:
        """Write a report down for good, before it is sent."""
        record = {"version": _VERSION, "job": asdict(job), "report": asdict(report)}
        path = self._reports / f"{_name(job)}.json"
        draft = path.with_suffix(_DRAFT)
        try:
            with draft.open("w") as file:
                json.dump(record, file, default=str)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        _sync(self._reports)

    def drop(self, job: Job) -> None:
        """Forget a job and all its files."""
        (self._reports / f"{_name(job)}.json").unlink(missing_ok=True)
        with self._clearing:
            self._remove(self._jobs / _name(job))

    def clear(self) -> None:
        """Remove what resisted before: the children of a daemon that was killed live on a while."""
        with self._clearing:
            for path in sorted(self._stuck):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a job's directory, or remember it."""
        trees.remove(path)
        (self._stuck.add if os.path.lexists(path) else self._stuck.discard)(path)

    def report(self, job: Job) -> Report | None:
        """Return what is written down of a job; None when there is nothing that can be read."""
        try:
            return _read(self._reports / f"{_name(job)}.json")[1]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def left(self) -> list[tuple[Job, Report]]:
        """Return what earlier daemons could not report, and clear away all else they left.

        For the start alone: what belongs to no report might be a job's that runs.
        """
        for draft in self._reports.glob(f"*{_DRAFT}"):
            draft.unlink()
        found = {}
        for path in sorted(self._reports.glob("*.json")):
            try:
                job, report = _read(path)
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("unreadable report %s: %s", path, error, extra={"action": "replay"})
                path.unlink()
                continue
            found[_name(job)] = (job, report)
        for path in self._jobs.iterdir():
            if path.name not in found:
                self._remove(path)
        return list(found.values())


def _name(job: Job) -> str:
    """Return the name of a job's files: one a grant, so that a second grant disturbs nothing."""
    return f"{job.id}.{job.fence or 0}"


def _read(path: Path) -> tuple[Job, Report]:
    """Read a record back."""
    record = json.loads(path.read_text())
    if record["version"] != _VERSION:
        raise ValueError(f"version {record['version']}")
    raw = record["report"]
    raw["ending"] = Ending(raw["ending"])
    raw["artifacts"] = tuple(
        Artifact(**{**artifact, "path": Path(artifact["path"])}) for artifact in raw["artifacts"]
    )
    return Job(**record["job"]), Report(**raw)


def _sync(directory: Path) -> None:
    """Make a rename survive a power cut."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
