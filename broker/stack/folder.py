"""The data folder of a stack: the only place that knows what lies where, and whose it is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.stack import servers


class FolderInUse(Exception):
    """Another stack runs on this data folder."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One data folder; `path` is absolute."""

    path: Path

    @property
    def database_url(self) -> str:
        """The ledger when no database is named."""
        return f"sqlite:///{self.path / 'ledger.sqlite3'}"

    @property
    def artifacts(self) -> Path:
        """Where stored files lie."""
        return self._made("artifacts")

    @property
    def record(self) -> Path:
        """Who runs now."""
        return self.path / "processes.json"

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self._made("logs") / f"{name}.log"

    def data(self, name: str) -> Path:
        """Return the folder a process keeps its own files in."""
        return self._made(name)

    def token(self, name: str, *, database_url: str) -> Path:
        """Return the file of a token, which is good in that database alone."""
        digest = hashlib.sha256(database_url.encode()).hexdigest()[:8]
        return self._made("tokens") / f"{name}-{digest}"

    def ports(self, names: Sequence[str]) -> dict[str, int]:
        """Choose a port for each name: the one it had here before, unless somebody has that now.

        Whoever wrote an address into a configuration finds the next stack there too.
        """
        record = self.path / "ports.json"
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        fresh = dict(zip(names, servers.free_ports(len(names)), strict=True))
        kept = {name: before.get(name) for name in names} if isinstance(before, dict) else {}
        chosen = fresh | {n: p for n, p in kept.items() if type(p) is int and servers.is_free(p)}
        if len(set(chosen.values())) < len(names):
            chosen = fresh  # an old port may be among the new ones
        record.write_text(json.dumps(chosen), encoding="utf-8")
        return chosen

    def _made(self, name: str) -> Path:
        made = self.path / name
        made.mkdir(exist_ok=True)
        return made

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, or refuse when another stack does; the kernel lets go when we die."""
        # Tokens and the ledger are in here.
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.path / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise FolderInUse(
                    f"another stack (process {lock.read().strip() or 'unknown'}) runs on "
                    f"{self.path}; stop it, or choose another --data-dir"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
