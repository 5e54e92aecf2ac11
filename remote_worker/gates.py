"""What a gate is: a question about this machine or its edge, the answer, and the way out."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from remote_worker.account import Account
from remote_worker.job import Welcome
from remote_worker.settings import Settings

_PROGRAM_LIMIT_S = 30.0


class Closed(Exception):
    """A gate that did not open."""

    def __init__(self, detail: str, *, way_out: str, refused: bool = False) -> None:
        super().__init__(detail)
        self.way_out = way_out
        #: the edge itself said no
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate's answer."""

    name: str
    ok: bool
    detail: str
    #: what to do about it; empty when it is open and all is well
    way_out: str = ""
    #: open, and yet jobs may not go as their senders think
    warning: bool = False
    #: closed by the edge, which does not want this worker
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Everything the gates found out."""

    gates: tuple[Gate, ...]
    #: what the edge said at hello; None when it could not be asked
    welcome: Welcome | None

    @property
    def ok(self) -> bool:
        """Say whether claiming may begin."""
        return self.welcome is not None and all(gate.ok for gate in self.gates)

    @property
    def refused(self) -> bool:
        """Say whether only the edge's no stands in the way: nothing on this machine."""
        closed = [gate for gate in self.gates if not gate.ok]
        return bool(closed) and all(gate.refused for gate in closed)

    @property
    def warnings(self) -> tuple[Gate, ...]:
        """Return the gates that are open with a warning."""
        return tuple(gate for gate in self.gates if gate.warning)


def attempt(name: str, gate: Callable[[], str]) -> Gate:
    """Ask one gate."""
    try:
        return Gate(name=name, ok=True, detail=gate())
    except Closed as closed:
        return Gate(
            name=name, ok=False, detail=str(closed), way_out=closed.way_out, refused=closed.refused
        )


def program(name: str, settings: Settings, *, way_out: str) -> str:
    """Find a program."""
    path = shutil.which(name, path=settings.path)
    if path is None:
        raise Closed(f"{name} is not there, or cannot be executed", way_out=way_out)
    return path


def output(argv: list[str], environment: Mapping[str, str], account: Account | None = None) -> str:
    """Run a short program and return what it says."""
    try:
        done = subprocess.run(
            argv, env=dict(environment), capture_output=True, timeout=_PROGRAM_LIMIT_S, check=False,
            stdin=subprocess.DEVNULL, cwd="/", user=account.uid if account else None,
            group=account.gid if account else None, extra_groups=[] if account else None,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Closed(f"{argv[0]} does not run: {error}", way_out=f"mend {argv[0]}") from None
    text = (done.stdout + b"\n" + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        last = text.splitlines()[-1] if text else "without a word"
        raise Closed(f"{argv[0]} ended with {done.returncode}: {last}", way_out=f"mend {argv[0]}")
    return text
