"""The gates before the first claim: each says what to do, and none of them claims anything."""

import contextlib
import re
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_worker import codex, credentials, isolation
from remote_worker.account import Account
from remote_worker.credentials import Credential
from remote_worker.errors import Misconfigured, Refused, Unanswered
from remote_worker.job import Job, Welcome
from remote_worker.settings import UNSANDBOXED, Settings
from remote_worker.wire import Wire

#: 2.38 is the first to know `safe.bareRepository`; an older git would ignore it without a word.
GIT_MIN = (2, 38)
_PROGRAM_LIMIT_S = 30.0


_SANDBOX_WAY_OUT = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces,"
    " kernel.apparmor_restrict_unprivileged_userns=0; in a container the runtime forbids them), or"
    " say with --codex-sandbox danger-full-access that this machine is itself the sandbox: as it"
    " is, every command of the agent fails, and the job succeeds without a change"
)


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


def check(settings: Settings, wire: Wire) -> Passed:
    """Try every gate, also behind a closed one: a person mends them all at once."""
    gates = [
        _try("work directory", lambda: _work_dir(settings)),
        _try("git", lambda: _git(settings)),
    ]
    # no types named: any may come, and codex_exec is the one we run
    if not settings.types or any(one.startswith("codex_") for one in settings.types):
        found = _try("codex", lambda: _codex(settings))
        gates.append(found)
        if found.ok:
            gates.append(_try("codex login", lambda: _codex_login(settings)))
            gates.append(_codex_sandbox(settings))
    gates.append(_isolation(settings))
    credential = credentials.of(settings)
    if credential is not None:
        gates.append(_try("git credential", lambda: _git_credential(credential)))
    edge = _try("edge", lambda: _edge(wire))
    gates.append(edge)
    welcomes: list[Welcome] = []
    if edge.ok:
        gates.append(_try("token", lambda: _token(settings, wire, welcomes)))
    return Passed(gates=tuple(gates), welcome=welcomes[0] if welcomes else None)


def _try(name: str, gate: Callable[[], str]) -> Gate:
    """Ask one gate."""
    try:
        return Gate(name=name, ok=True, detail=gate())
    except Closed as closed:
        return Gate(
            name=name, ok=False, detail=str(closed), way_out=closed.way_out, refused=closed.refused
        )


def _work_dir(settings: Settings) -> str:
    """See that the work directory is there and can be written."""
    try:
        settings.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.work_dir):
            pass
        account = settings.run_as
        if account is not None:
            settings.work_dir.chmod(stat.S_IMODE(settings.work_dir.stat().st_mode) | 0o011)
    except OSError as error:
        raise Closed(
            f"{settings.work_dir}: {error.strerror}",
            way_out="make it writable for this user, or name another with --work-dir",
        ) from None
    if account is not None and not account.sees([settings.work_dir / "."]):
        raise Closed(
            f"{settings.work_dir}: user {account.name} cannot come there",
            way_out="name one with --work-dir that every folder above lets him pass to, as in"
            " /var/lib/drawbridge-worker",
        )
    return str(settings.work_dir)


def _git(settings: Settings) -> str:
    """See that git is there and knows what keeps a hostile repository harmless."""
    path = _program(settings.git, settings, way_out="install git, or name it with --git")
    text = _output([path, "--version"], {"PATH": settings.path, "LC_ALL": "C"}).strip()
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < GIT_MIN:
        wanted = ".".join(map(str, GIT_MIN))
        raise Closed(
            f"{path} is {text or 'not saying its version'}; {wanted} or newer is needed",
            way_out=f"install git {wanted} or newer, or name one with --git"
            " (older ones ignore safe.bareRepository without saying so)",
        )
    return f"{text} ({path})"


def _codex(settings: Settings) -> str:
    """See that the Codex CLI is there and starts."""
    way_out = (
        "npm install -g @openai/codex, or name it with --codex; for other jobs alone, name their"
        " types with --types"
    )
    path = _program(settings.codex, settings, way_out=way_out)
    with _codex_environment(settings) as environment:
        said = _output([path, "--version"], environment, settings.run_as)
    text = said.strip().splitlines()
    return f"{text[-1] if text else 'unknown version'} ({path})"


def _codex_login(settings: Settings) -> str:
    """See that Codex is logged in, with the CODEX_HOME the jobs will have."""
    with _codex_environment(settings) as environment:
        try:
            text = _output(codex.login_status_argv(settings), environment, settings.run_as)
        except Closed as closed:
            raise Closed(
                f"not logged in with CODEX_HOME={settings.codex_home}: {closed}",
                way_out=f"CODEX_HOME={settings.codex_home} {settings.codex} login"
                " (as the user that runs jobs), or name another with --codex-home",
            ) from None
    return f"{text.strip().splitlines()[0] if text.strip() else 'yes'} ({settings.codex_home})"


def _codex_sandbox(settings: Settings) -> Gate:
    """Try Codex's sandbox: where it cannot work, Codex runs to its end and changes nothing."""
    name = "codex sandbox"
    if settings.codex_sandbox == UNSANDBOXED:
        return Gate(name=name, ok=True, detail=f"off (--codex-sandbox {UNSANDBOXED})")
    with _codex_environment(settings) as environment:
        trial = isolation.codex_sandbox(settings, environment, cwd=Path(environment["HOME"]))
    detail = f"{settings.codex_sandbox}: {trial.detail}"
    match trial.answer:
        case isolation.Answer.YES:
            return Gate(name=name, ok=True, detail=detail)
        case isolation.Answer.NO:
            return Gate(name=name, ok=True, detail=detail, warning=True, way_out=_SANDBOX_WAY_OUT)
        case isolation.Answer.UNKNOWN:
            return Gate(name=name, ok=True, detail=f"{settings.codex_sandbox}, unknown whether it"
                        f" works: {trial.detail}")  # fmt: skip


def _isolation(settings: Settings) -> Gate:
    """Say what holds a child on this host, and what does not."""
    try:
        detail, holes = isolation.verdict(settings)
    except Misconfigured as error:
        return Gate(name="isolation", ok=False, detail=str(error), way_out=isolation.NO_BOX_WAY_OUT)
    return Gate(
        name="isolation", ok=True, detail=detail, warning=bool(holes), way_out="; ".join(holes)
    )


def _git_credential(credential: Credential) -> str:
    """See that there is a token for git."""
    try:
        credential.token()
    except Misconfigured as error:
        raise Closed(
            str(error), way_out="mend it, or run without --git-token-file and --use-gh"
        ) from None
    return f"for {credential.host} (private clones, publishing)"


def _edge(wire: Wire) -> str:
    """See that the edge is there and ready."""
    try:
        wire.healthz()
    except (Unanswered, Refused) as error:
        raise Closed(
            f"no healthy answer: {error}",
            way_out="is --url right (https://host[:port], no path), and the edge running?",
        ) from None
    try:
        wire.readyz()
    except (Unanswered, Refused) as error:
        raise Closed(
            f"alive, but not ready: {error}",
            way_out="its ledger or reservations cannot be reached; its operator sees why",
        ) from None
    return "alive and ready"


def _token(settings: Settings, wire: Wire, welcomes: list[Welcome]) -> str:
    """See that the edge takes the token, for this worker's name."""
    try:
        welcomes.append(_hello(settings, wire))
    except Unanswered as error:
        raise Closed(
            f"no answer to hello: {error}", way_out="try again, the edge was there"
        ) from None
    except Refused as no:
        raise Closed(
            f"the edge refused: {no}",
            way_out=f"make a token for worker {settings.worker_id!r}"
            f" (drawbridge tokens create --kind worker --worker-id {settings.worker_id}),"
            " or say with --worker-id whose it is",
            refused=True,
        ) from None
    return f"accepted for worker {settings.worker_id}"


def _hello(settings: Settings, wire: Wire) -> Welcome:
    """Say hello; to an edge without that route, knock where a stranger is turned away first."""
    try:
        return wire.hello(
            types=settings.types,
            capabilities=settings.capabilities,
            concurrency=settings.concurrency,
        )
    except Refused as no:
        if no.status not in (404, 405):
            raise
    nobodys = Job(id=str(uuid.uuid4()), type="", payload={}, attempt=1, lease_id=None, fence=None)
    try:
        wire.heartbeat(nobodys, lease_s=settings.lease_s, progress=None, timeout_s=10)
    except Refused as no:
        # The order of checks: credential first, existence late. So this 404 is a welcome.
        if no.status != 404 or no.code != "job_not_found":  # noqa: PLR2004 - HTTP
            raise
    return Welcome()


def _program(name: str, settings: Settings, *, way_out: str) -> str:
    """Find a program."""
    path = shutil.which(name, path=settings.path)
    if path is None:
        raise Closed(f"{name} is not there, or cannot be executed", way_out=way_out)
    return path


def _output(argv: list[str], environment: Mapping[str, str], account: Account | None = None) -> str:
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


@contextlib.contextmanager
def _codex_environment(settings: Settings) -> Iterator[dict[str, str]]:
    """Lend an environment with a HOME as fresh as a job's."""
    # Without a work directory its own gate is closed already; this one still has its say.
    where = settings.work_dir if settings.work_dir.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="preflight-", dir=where) as home:
        if settings.run_as is not None:
            settings.run_as.give(Path(home))
        yield codex.environment(settings, home=Path(home), tmp=Path(home))
