"""What each process of the stack is started as: the only place that knows who gets which address.

Every environment is written out. What a role may not hold it is not given: the edge and the
workers never see the Celery broker, the workers no database and no Redis either.
"""

from __future__ import annotations

import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.stack import servers
from broker.stack.folder import Folder
from broker.stack.processes import Program

HTTP_TIMEOUT_S: Final = 2.0
#: What any program needs to find its way about a machine.
_MACHINE: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME")
#: What the owner of a worker's machine may have set for the coding CLI and for git.
_WORKER: Final = (
    "CODEX_HOME",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
)
GRACE_S: Final = 10.0
#: The bridge finishes what it has begun to tell Celery.
BRIDGE_GRACE_S: Final = 15.0
#: A worker stops its child first, which has ten seconds of its own.
WORKER_GRACE_S: Final = 20.0
#: What it logs when it begins to claim.
WORKER_READY: Final = '"action": "ready"'
#: Told once a worker finishes its jobs, told twice it gives them back.
WORKER_INSIST_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything is; the first four may hold passwords."""

    broker_url: str = field(repr=False)
    result_backend: str = field(repr=False)
    database_url: str = field(repr=False)
    reservations_url: str = field(repr=False)
    edge_port: int
    flower_port: int | None

    @property
    def edge_url(self) -> str:
        """The one address a remote worker knows."""
        return f"http://127.0.0.1:{self.edge_port}"

    @property
    def flower_url(self) -> str | None:
        """Where Flower shows its pages."""
        return None if self.flower_port is None else f"http://127.0.0.1:{self.flower_port}"


def command(name: str) -> str:
    """Return a command of this installation, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The roles of one stack; `environ` is the environment of whoever starts it."""

    folder: Folder
    addresses: Addresses
    queue: str
    environ: Mapping[str, str] = field(repr=False)

    def bridge(self, ready: Callable[[], bool]) -> Program:
        """Return the Celery side."""
        settings = {
            "DRAWBRIDGE_BROKER_URL": self.addresses.broker_url,
            "DRAWBRIDGE_RESULT_BACKEND": self.addresses.result_backend,
            "DRAWBRIDGE_DATABASE_URL": self.addresses.database_url,
            "DRAWBRIDGE_RESERVATIONS_URL": self.addresses.reservations_url,
            "DRAWBRIDGE_ARTIFACTS_DIR": str(self.folder.artifacts),
            "DRAWBRIDGE_QUEUES": self.queue,
            "DRAWBRIDGE_DECLARE_QUEUES": "true",
        }
        argv = (command("drawbridge"), "bridge")
        return self._program("bridge", argv, settings, ready, grace_s=BRIDGE_GRACE_S)

    def beat(self) -> Program:
        """Return Celery beat, which nobody waits for: it is the only trigger of nothing."""
        settings = {"DRAWBRIDGE_BROKER_URL": self.addresses.broker_url}
        return self._program("beat", (command("drawbridge"), "beat"), settings, lambda: True)

    def edge(self) -> Program:
        """Return the HTTP edge on loopback."""
        settings = {
            "DRAWBRIDGE_DATABASE_URL": self.addresses.database_url,
            "DRAWBRIDGE_RESERVATIONS_URL": self.addresses.reservations_url,
            "DRAWBRIDGE_ARTIFACTS_DIR": str(self.folder.artifacts),
            # where jobs go that are made over HTTP without a queue
            "DRAWBRIDGE_QUEUES": self.queue,
        }
        where = ("--host", "127.0.0.1", "--port", str(self.addresses.edge_port))
        argv = (command("drawbridge"), "edge", *where)
        ready = f"{self.addresses.edge_url}/readyz"
        return self._program("edge", argv, settings, lambda: answers(ready))

    def flower(self) -> Program:
        """Return Flower, an ordinary one: it knows Celery and nothing of ours."""
        settings = {
            "CELERY_BROKER_URL": self.addresses.broker_url,
            "CELERY_RESULT_BACKEND": self.addresses.result_backend,
            # On loopback, where the broker itself asks nobody for a password.
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        where = ("--address=127.0.0.1", f"--port={self.addresses.flower_port}")
        argv = (command("celery"), "flower", *where, "--persistent=false")
        ready = f"{self.addresses.flower_url}/healthcheck"
        return self._program("flower", argv, settings, lambda: answers(ready))

    def worker(self, worker_id: str, token: Path, arguments: tuple[str, ...]) -> Program:
        """Return a remote worker, which is told one URL and one token."""
        own = {name: self.environ[name] for name in _WORKER if name in self.environ}
        edge = ("--url", self.addresses.edge_url, "--token-file", str(token))
        me = ("--worker-id", worker_id, "--work-dir", str(self.folder.data(worker_id)))
        argv = (command("drawbridge-worker"), "run", "--log-format", "json", *edge, *me, *arguments)
        # Its hello is one of its gates, so an edge that knows it says little: it may end yet.
        ready = _says(self.folder.log(worker_id), WORKER_READY)
        return self._program(
            worker_id, argv, own, ready, grace_s=WORKER_GRACE_S, insist_s=WORKER_INSIST_S
        )

    def server(self, name: str, *, port: int, options: tuple[str, ...]) -> Program:
        """Return an embedded Valkey."""
        data = self.folder.data(name)
        argv = servers.argv(port=port, folder=data, options=options)
        return self._program(name, argv, {}, lambda: servers.answers(port, data))

    def _program(
        self,
        name: str,
        argv: tuple[str, ...],
        settings: Mapping[str, str],
        ready: Callable[[], bool],
        *,
        grace_s: float = GRACE_S,
        insist_s: float | None = None,
    ) -> Program:
        machine = {n: self.environ[n] for n in _MACHINE if n in self.environ}
        return Program(
            name=name,
            argv=argv,
            environment=machine | {"PYTHONUNBUFFERED": "1"} | dict(settings),
            folder=self.folder.data(name),
            log=self.folder.log(name),
            ready=ready,
            grace_s=grace_s,
            insist_s=insist_s,
        )


def _says(log: Path, words: str) -> Callable[[], bool]:
    """Return what tells whether the words were written to the log from now on."""
    before = log.stat().st_size if log.exists() else 0

    def said() -> bool:
        if not log.exists():
            return False
        with log.open("rb") as lines:
            lines.seek(before)
            return words.encode() in lines.read()

    return said


def answers(url: str) -> bool:
    """Tell whether a GET of the URL is answered with 200."""
    try:
        with _direct().open(url, timeout=HTTP_TIMEOUT_S) as response:
            return bool(response.status == 200)  # noqa: PLR2004
    except (urllib.error.URLError, OSError):
        return False


def _direct() -> urllib.request.OpenerDirector:
    """Return an opener that asks no proxy: everything here is on loopback."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
