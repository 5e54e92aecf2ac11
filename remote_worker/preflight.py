"""The gates before the first claim: each says what to do, and none of them claims anything."""

import contextlib
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from remote_worker import bounds, codex, credentials, isolation
from remote_worker.credentials import Credential
from remote_worker.errors import Misconfigured, Refused, Unanswered
from remote_worker.gates import Closed, Gate, Passed, attempt, output, program
from remote_worker.job import Job, Welcome
from remote_worker.settings import UNSANDBOXED, Settings
from remote_worker.wire import Wire

#: 2.38 is the first to know `safe.bareRepository`; an older git would ignore it without a word.
GIT_MIN = (2, 38)


_SANDBOX_WAY_OUT = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces,"
    " kernel.apparmor_restrict_unprivileged_userns=0; in a container the runtime forbids them), or"
    " say with --codex-sandbox danger-full-access that this machine is itself the sandbox: as it"
    " is, every command of the agent fails, and the job succeeds without a change"
)


def check(settings: Settings, wire: Wire) -> Passed:
    """Try every gate, also behind a closed one: a person mends them all at once."""
    gates = [
        attempt("work directory", lambda: _work_dir(settings)),
        attempt("git", lambda: _git(settings)),
    ]
    # no types named: any may come, and codex_exec is the one we run
    if not settings.types or any(one.startswith("codex_") for one in settings.types):
        found = attempt("codex", lambda: _codex(settings))
        gates.append(found)
        if found.ok:
            gates.append(attempt("codex login", lambda: _codex_login(settings)))
            gates.append(_codex_sandbox(settings))
    gates.append(_isolation(settings))
    gates.append(Gate(name="limits", ok=True, detail=bounds.told(settings)))
    credential = credentials.of(settings)
    if credential is not None:
        gates.append(attempt("git credential", lambda: _git_credential(credential)))
    edge = attempt("edge", lambda: _edge(wire))
    gates.append(edge)
    welcomes: list[Welcome] = []
    if edge.ok:
        gates.append(attempt("token", lambda: _token(settings, wire, welcomes)))
    return Passed(gates=tuple(gates), welcome=welcomes[0] if welcomes else None)


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
    path = program(settings.git, settings, way_out="install git, or name it with --git")
    text = output([path, "--version"], {"PATH": settings.path, "LC_ALL": "C"}).strip()
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
    path = program(settings.codex, settings, way_out=way_out)
    with _codex_environment(settings) as environment:
        said = output([path, "--version"], environment, settings.run_as)
    text = said.strip().splitlines()
    return f"{text[-1] if text else 'unknown version'} ({path})"


def _codex_login(settings: Settings) -> str:
    """See that Codex is logged in, with the CODEX_HOME the jobs will have, and see."""
    if isolation.hides(settings, settings.codex_home):
        raise Closed(
            f"CODEX_HOME={settings.codex_home} lies in --work-dir, which no job sees",
            way_out=f"--work-dir {settings.work_dir / 'work'}, or another --codex-home",
        )
    with _codex_environment(settings) as environment:
        try:
            text = output(codex.login_status_argv(settings), environment, settings.run_as)
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


@contextlib.contextmanager
def _codex_environment(settings: Settings) -> Iterator[dict[str, str]]:
    """Lend an environment with a HOME as fresh as a job's."""
    # Without a work directory its own gate is closed already; this one still has its say.
    where = settings.work_dir if settings.work_dir.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="preflight-", dir=where) as home:
        if settings.run_as is not None:
            settings.run_as.give(Path(home))
        yield codex.environment(settings, home=Path(home), tmp=Path(home))
