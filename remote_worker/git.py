"""How git is run: no configuration but ours, no hooks, no helpers, only allowed protocols."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from remote_worker.box import Box
from remote_worker.credentials import Credential
from remote_worker.errors import WorkerError
from remote_worker.limits import UNLIMITED, LimitExceeded, Limits
from remote_worker.output import Captured, ToFile, TooMuchOutput
from remote_worker.process import Command, Interrupt, Sink, run

#: For what happens on this machine alone.
LOCAL_LIMIT_S = 300.0
#: Names of files and refs; a repository with more of them than this is not for a remote worker.
_MAX_LISTING = 64 * 1024 * 1024

# Every one of these has run somebody's program, or fetched somebody's URL, on plain git.
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.autocrlf=false",
    "core.splitIndex=false",
    "credential.helper=",
    "protocol.allow=never",
    "protocol.https.allow=always",
    "http.followRedirects=false",
    # A transfer that crawls for a minute is a dead one.
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "safe.bareRepository=explicit",
    "transfer.fsckObjects=true",
    "advice.detachedHead=false",
    # A detached gc would outlive the command and write into what we are about to read.
    "gc.auto=0",
    "maintenance.auto=false",
)

#: The commands that talk to a host, and may have to say who they are.
_REMOTE = frozenset({"ls-remote", "fetch", "push"})


class Output(Sink, Protocol):
    """Takes what git writes, and keeps the end of its complaints."""

    @property
    def err(self) -> str:
        """Return the end of what was written to stderr."""


class GitFailed(WorkerError):
    """A git command ended badly, or did not end in time."""

    def __init__(self, text: str, *, limit: str | None = None) -> None:
        super().__init__(text)
        #: the error type of the limit it was stopped for
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """One job's git: its own HOME, its own idea of when to stop."""

    program: str
    #: an empty directory; git's defaults may look into it and find nothing
    home: Path
    interrupt: Interrupt
    #: `file` only for repositories the owner allowed on this machine
    allow_file: bool = False
    #: what the operator passes through: proxies and certificate files
    environment: Mapping[str, str] = field(default_factory=dict)
    credential: Credential | None = None
    limits: Limits = UNLIMITED
    #: the directory whose size is limited
    workspace: Path | None = None
    #: where an agent's files are read; the same as the agent's own
    box: Box | None = None

    def have(self, path: Path) -> None:
        """Let git have what we made, should it run as another user."""
        if self.box is not None:
            self.box.give(path)

    def text(
        self,
        *args: str,
        cwd: Path,
        time_limit_s: float = LOCAL_LIMIT_S,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run git and return what it wrote, bytes that are no UTF-8 escaped as in file names."""
        captured = Captured(limit=_MAX_LISTING)
        self._run(args, cwd, captured, time_limit_s, environment)
        return captured.out.decode(errors="surrogateescape")

    def to_file(
        self,
        path: Path,
        *args: str,
        cwd: Path,
        limit: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run git and write what it writes to a file."""
        # Anew: an agent without a box could have made a link of that name.
        with path.open("xb") as file:
            self._run(args, cwd, ToFile(file, limit=limit), LOCAL_LIMIT_S, environment)

    def feed(self, sink: Output, *args: str, cwd: Path) -> None:
        """Run git and hand what it writes to a sink."""
        self._run(args, cwd, sink, LOCAL_LIMIT_S, None)

    def _run(
        self,
        args: tuple[str, ...],
        cwd: Path,
        sink: Output,
        time_limit_s: float,
        environment: Mapping[str, str] | None,
    ) -> None:
        """Run git; GitFailed carries the end of what it complained."""
        protocols = ("protocol.file.allow=always",) if self.allow_file else ()
        asks = self.credential is not None and _verb(args) in _REMOTE
        command = Command(
            argv=(
                self.program,
                *(part for setting in (*_CONFIG, *protocols) for part in ("-c", setting)),
                *(self.credential.git_options() if asks and self.credential else ()),
                *args,
            ),
            cwd=cwd,
            environment={**self._environment(), **(environment or {})},
            time_limit_s=time_limit_s,
            grace_s=2.0,
            limits=self.limits,
            workspace=self.workspace,
            box=self.box,
        )
        try:
            code = run(command, sink=sink, interrupt=self.interrupt)
        except LimitExceeded as error:
            raise GitFailed(f"git {_verb(args)}: {error}", limit=error.error_type) from None
        except TooMuchOutput as error:
            raise GitFailed(f"git {_verb(args)}: {error}") from None
        if code != 0:
            raise GitFailed(f"git {_verb(args)} ended with {code}: {sink.err[-2000:]}")

    def _environment(self) -> dict[str, str]:
        """Return all git gets to see: no GIT_* and no HOME of the daemon's."""
        return {
            **self.environment,
            "PATH": self.environment.get("PATH", os.defpath),
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "https:file" if self.allow_file else "https",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
        }


def _verb(args: tuple[str, ...]) -> str:
    """Return the subcommand, for messages."""
    return next((arg for arg in args if not arg.startswith("-")), "")
