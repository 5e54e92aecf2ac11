"""The only one to know the environment: every ``DRAWBRIDGE_*`` name, its meaning and default."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from broker.errors import ConfigurationError

PREFIX: Final = "DRAWBRIDGE_"

#: every name there is, whichever process reads it, so that one file can serve them all; but not the
#: remote worker's, whose machine must hold none of these
NAMES: Final = MappingProxyType(
    {
        "DRAWBRIDGE_DATA_DIR": "folder of whatever has no place of its own",
        "DRAWBRIDGE_DATABASE_URL": "the ledger: sqlite:////path or postgresql://…",
        "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "FULL, or NORMAL where a power cut may cost promises",
        "DRAWBRIDGE_RESERVATIONS_URL": "Redis of the reservations, not the Celery broker's",
        "DRAWBRIDGE_ARTIFACTS_DIR": "folder of the stored files",
        "DRAWBRIDGE_ARTIFACTS_URL": "s3://bucket/prefix?endpoint=…&region=…, for them instead",
        "DRAWBRIDGE_ARTIFACT_MAX_BYTES": "largest artifact",
        "DRAWBRIDGE_ARTIFACTS_PER_JOB": "files that one job may have",
        "DRAWBRIDGE_ARTIFACT_BYTES_PER_JOB": "what the files of one job may weigh together",
        "DRAWBRIDGE_ARTIFACT_BYTES_PER_WORKER": "what one worker may upload in a day",
        "DRAWBRIDGE_EVENTS_PER_JOB": "entries that a job's log may have",
        "DRAWBRIDGE_CALLS_PER_SECOND": "calls of one sort that a worker may make at one edge",
        "DRAWBRIDGE_FAILURES_PER_MINUTE": "refused credentials of one address before it gets 429",
        "DRAWBRIDGE_RESULT_MAX_BYTES": "largest result kept with the job",
        "DRAWBRIDGE_PAYLOAD_MAX_BYTES": "largest payload over HTTP",
        "DRAWBRIDGE_KEEP_JOBS_DAYS": "how long ended jobs are kept",
        "DRAWBRIDGE_KEEP_DEAD_LETTERS_DAYS": "how long dead letters are kept",
        "DRAWBRIDGE_KEEP_ARTIFACTS_DAYS": "how long stored files are kept",
        "DRAWBRIDGE_KEEP_OUTBOX_DAYS": "how long settled effects are kept",
        "DRAWBRIDGE_EDGE_URL": "the edge that `drawbridge jobs` asks",
        "DRAWBRIDGE_EDGE_TOKEN": "the operator's or producer's token it asks with",
        "DRAWBRIDGE_EDGE_TOKEN_FILE": "or the file that holds that token",
        "DRAWBRIDGE_TRUSTED_PROXIES": "proxies before the edge, as addresses or CIDR, by commas",
        "DRAWBRIDGE_OIDC_CONFIG": "file of the issuers whose JWTs the edge believes",
        "DRAWBRIDGE_BROKER_URL": "the Celery broker; the bridge's and beat's alone",
        "DRAWBRIDGE_RESULT_BACKEND": "Celery's result backend; the bridge's alone",
        "DRAWBRIDGE_QUEUES": "bridged queues, separated by commas",
        "DRAWBRIDGE_NODE_SUFFIX": "what follows the @ in a remote worker's node name; %w is its id",
        "DRAWBRIDGE_READ_AHEAD": "queued jobs per queue above which ingest waits",
        "DRAWBRIDGE_OUTBOX_WARN_SECONDS": "how long Celery may be untold before the bridge warns",
        "DRAWBRIDGE_DECLARE_QUEUES": "whether the bridge declares its queues (true or false)",
    },
)

KIB: Final = 1024
MIB: Final = 1024 * KIB


class Environment:
    """What a process was told by its environment; refuses names that nobody reads."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Take ``environ``, or the process's own.

        Raises:
            ConfigurationError: it holds a ``DRAWBRIDGE_*`` name that does not exist.
        """
        self._values = dict(os.environ if environ is None else environ)
        for name in sorted(self._values):
            if name.startswith(PREFIX) and name not in NAMES:
                raise ConfigurationError(f"There is no setting {name}{_near(name)}")

    def get(self, name: str) -> str | None:
        """Return a value without the blanks around it; empty counts as not set."""
        if name.startswith(PREFIX) and name not in NAMES:
            raise LookupError(f"{name} is read, but not in NAMES")
        return self._values.get(name, "").strip() or None

    def text(self, name: str, default: str) -> str:
        """Return a value or its default."""
        return self.get(name) or default

    def number(self, name: str, default: int, *, least: int = 1, most: int = 2**40) -> int:
        """Return a whole number.

        Raises:
            ConfigurationError: it is none, or out of bounds.
        """
        value = self.get(name)
        if value is None:
            return default
        digits = value.isascii() and value.isdigit() and len(value) <= len(str(most))
        if not digits or not least <= int(value) <= most:
            raise ConfigurationError(f"{name} must be a whole number from {least} to {most}")
        return int(value)

    def days(self, name: str, default: timedelta) -> timedelta:
        """Return a number of days as the time they take."""
        return timedelta(days=self.number(name, default.days, most=36_500))

    def flag(self, name: str, *, default: bool) -> bool:
        """Return true or false.

        Raises:
            ConfigurationError: it is neither.
        """
        value = self.text(name, str(default)).lower()
        if value not in {"true", "false"}:
            raise ConfigurationError(f"{name} must be true or false, not {value!r}")
        return value == "true"

    def words(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """Return what stands between the commas."""
        words = (word.strip() for word in (self.get(name) or "").split(","))
        return tuple(word for word in words if word) or default

    def path(self, name: str, default: Path) -> Path:
        """Return an absolute path."""
        value = self.get(name)
        return (Path(value) if value else default).expanduser().absolute()

    @property
    def data_dir(self) -> Path:
        """Where whatever has no place of its own lies."""
        home = Path(self.get("XDG_DATA_HOME") or "~/.local/share")
        return self.path("DRAWBRIDGE_DATA_DIR", home / "drawbridge")


def _near(name: str) -> str:
    # Without the prefix, which makes all of them look alike.
    words = {known.removeprefix(PREFIX): known for known in NAMES}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), words, n=1)
    if near:
        return f"; did you mean {words[near[0]]}?"
    return " here; one of a remote worker belongs into its environment alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where the stores are; their URLs may hold passwords."""

    database_url: str = field(repr=False)
    reservations_url: str = field(repr=False)
    artifacts_dir: Path
    #: a bucket for the files; the folder is then only where they come in
    artifacts_url: str | None = None
    sqlite_synchronous: str = "FULL"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read them from the environment."""
        env = Environment(environ)
        ledger = f"sqlite:///{env.data_dir / 'ledger.sqlite3'}"
        return cls(
            database_url=env.text("DRAWBRIDGE_DATABASE_URL", ledger),
            reservations_url=env.text("DRAWBRIDGE_RESERVATIONS_URL", "redis://127.0.0.1:6379/1"),
            artifacts_dir=env.path("DRAWBRIDGE_ARTIFACTS_DIR", env.data_dir / "artifacts"),
            artifacts_url=env.get("DRAWBRIDGE_ARTIFACTS_URL"),
            sqlite_synchronous=env.text("DRAWBRIDGE_SQLITE_SYNCHRONOUS", "FULL").upper(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """How the queue behaves; the moments of the contract are fixed, sizes and keeping are not."""

    #: an untaken grant goes back after this (decision 1)
    hold_s: int = 30
    #: bounds of ``leaseSeconds`` (decision 10)
    min_lease_s: int = 1
    max_lease_s: int = 3600
    #: a worker that never acknowledges a cancel loses its lease after this (decision 9)
    cancel_grace_s: int = 60
    artifact_max_bytes: int = 100 * MIB
    artifacts_per_job: int = 100
    artifact_bytes_per_job: int = 1024 * MIB
    #: in a day
    artifact_bytes_per_worker: int = 20 * 1024 * MIB
    #: beyond it only the queue itself writes
    events_per_job: int = 10_000
    result_max_bytes: int = 256 * KIB
    payload_max_bytes: int = 256 * KIB
    keep_jobs: timedelta = timedelta(days=14)
    keep_dead_letters: timedelta = timedelta(days=90)
    keep_artifacts: timedelta = timedelta(days=30)
    keep_outbox: timedelta = timedelta(days=1)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read sizes and keeping from the environment."""
        env = Environment(environ)
        ours = cls()
        return cls(
            artifact_max_bytes=env.number("DRAWBRIDGE_ARTIFACT_MAX_BYTES", ours.artifact_max_bytes),
            artifacts_per_job=env.number("DRAWBRIDGE_ARTIFACTS_PER_JOB", ours.artifacts_per_job),
            artifact_bytes_per_job=env.number(
                "DRAWBRIDGE_ARTIFACT_BYTES_PER_JOB", ours.artifact_bytes_per_job
            ),
            artifact_bytes_per_worker=env.number(
                "DRAWBRIDGE_ARTIFACT_BYTES_PER_WORKER", ours.artifact_bytes_per_worker
            ),
            events_per_job=env.number("DRAWBRIDGE_EVENTS_PER_JOB", ours.events_per_job),
            result_max_bytes=env.number("DRAWBRIDGE_RESULT_MAX_BYTES", ours.result_max_bytes),
            payload_max_bytes=env.number("DRAWBRIDGE_PAYLOAD_MAX_BYTES", ours.payload_max_bytes),
            keep_jobs=env.days("DRAWBRIDGE_KEEP_JOBS_DAYS", ours.keep_jobs),
            keep_dead_letters=env.days("DRAWBRIDGE_KEEP_DEAD_LETTERS_DAYS", ours.keep_dead_letters),
            keep_artifacts=env.days("DRAWBRIDGE_KEEP_ARTIFACTS_DAYS", ours.keep_artifacts),
            keep_outbox=env.days("DRAWBRIDGE_KEEP_OUTBOX_DAYS", ours.keep_outbox),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """What Celery's side needs; the URLs may hold passwords."""

    #: None when an app of the caller's own brings them (``-A``)
    broker_url: str | None = field(default=None, repr=False)
    result_backend: str | None = field(default=None, repr=False)
    queues: tuple[str, ...] = ("remote",)
    node_suffix: str = "edge"
    read_ahead: int = 10_000
    #: an effect that Celery was not told for as long is a warning
    outbox_warn_s: int = 60
    declare_queues: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read them from the environment."""
        env = Environment(environ)
        ours = cls()
        return cls(
            broker_url=env.get("DRAWBRIDGE_BROKER_URL"),
            result_backend=env.get("DRAWBRIDGE_RESULT_BACKEND"),
            queues=env.words("DRAWBRIDGE_QUEUES", ours.queues),
            node_suffix=env.text("DRAWBRIDGE_NODE_SUFFIX", ours.node_suffix),
            read_ahead=env.number("DRAWBRIDGE_READ_AHEAD", ours.read_ahead),
            outbox_warn_s=env.number("DRAWBRIDGE_OUTBOX_WARN_SECONDS", ours.outbox_warn_s),
            declare_queues=env.flag("DRAWBRIDGE_DECLARE_QUEUES", default=ours.declare_queues),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeAccess:
    """The edge that people and scripts ask, and the token they ask with."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        url: str | None = None,
        token_file: Path | None = None,
    ) -> Self:
        """Read what the arguments leave open.

        Raises:
            ConfigurationError: something is missing, or the file cannot be read.
        """
        env = Environment(environ)
        url = url or env.get("DRAWBRIDGE_EDGE_URL")
        if url is None:
            raise ConfigurationError("Say which edge: --edge-url, or DRAWBRIDGE_EDGE_URL")
        if not url.startswith(("https://", "http://")):
            raise ConfigurationError(f"{url!r} is no address like https://edge.example.org")
        named = env.get("DRAWBRIDGE_EDGE_TOKEN_FILE")
        file = token_file or (Path(named) if named else None)
        token = None if token_file else env.get("DRAWBRIDGE_EDGE_TOKEN")
        if token is None and file is None:
            raise ConfigurationError(
                "Say who asks: --token-file, DRAWBRIDGE_EDGE_TOKEN or DRAWBRIDGE_EDGE_TOKEN_FILE; "
                "`drawbridge tokens create --kind operator` makes a token"
            )
        if token is None and file is not None:
            try:
                token = file.expanduser().read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"The token file {file} cannot be read: {error}") from None
        if not token or not token.isascii() or not token.isprintable():
            raise ConfigurationError("That is no token: it must be one line of printable ASCII")
        return cls(url=url, token=token)
