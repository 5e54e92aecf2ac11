"""The demo: one real job, from an orchestrator's queue to a patch, in one terminal.

    make demo
    make demo REPO=https://github.com/org/repo INSTRUCTION="Fix the typo in the README"

Without REPO it needs no account: a small repository is made, and the real Codex CLI talks to a
scripted model on loopback. With REPO it is the caller's own Codex login that does the work.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
# Run by its path, so that `make demo` shows which file it is.
sys.path.insert(0, str(ROOT))

from broker.client import Client  # noqa: E402
from broker.errors import DrawbridgeError  # noqa: E402
from broker.stack.processes import KeepsDying, StartFailed, Stopped  # noqa: E402
from broker.stack.servers import NoServer  # noqa: E402
from broker.stack.stack import Options, Stack  # noqa: E402
from deploy.demo import codex_home, install_codex, repository  # noqa: E402
from deploy.demo.model_server import ModelServer  # noqa: E402
from deploy.demo.screen import Screen  # noqa: E402
from deploy.demo.scripts import SCRIPTS  # noqa: E402
from deploy.demo.watching import PATCH, Flower, NotShown, follow, text_of  # noqa: E402

RUNS: Final = ROOT / ".demo" / "runs"
ORCHESTRATOR: Final = ROOT / "deploy" / "examples" / "orchestrator.py"
STANDIN: Final = ROOT / "deploy" / "demo" / "standin_codex.py"
#: The script's job takes seconds; a person's own takes as long as a coding agent takes.
SCRIPTED_TIMEOUT_S: Final = 120
OWN_TIMEOUT_S: Final = 3600


class DemoFailed(Exception):
    """The job did not end as it should."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is to be done, and with which worker."""

    repository: str
    instruction: str
    worker_arguments: tuple[str, ...]
    timeout_s: int


def scripted(screen: Screen, run: Path, held: ExitStack) -> Assignment:
    """Prepare a job that needs no account: a made repository, a scripted model."""
    with screen.step("finding the Codex CLI"):
        codex = _codex(screen)
    with screen.step("making a small git repository"):
        place = run / "repository"
        repository.create(place)
    with screen.step("starting the scripted model and logging Codex in to it"):
        url = held.enter_context(ModelServer(SCRIPTS["edit"], log=run / "model.log"))
        home = run / "codex-home"
        sandbox = codex_home.prepare(home, codex=codex, model_url=url)
    screen.say(f"Codex runs with --sandbox {sandbox}, which this machine allows")
    address = f"file://{place}"
    return Assignment(
        repository=address,
        instruction=repository.INSTRUCTION,
        worker_arguments=(
            *("--codex", codex, "--codex-home", str(home), "--codex-sandbox", sandbox),
            *("--allow-repository", address),
        ),
        timeout_s=SCRIPTED_TIMEOUT_S,
    )


def _codex(screen: Screen) -> str:
    try:
        found = install_codex.install()
    except (install_codex.NoNpm, install_codex.InstallFailed) as problem:
        screen.loud(f"A STAND-IN PLAYS THE CODEX CLI: {problem}")
        return str(STANDIN)
    screen.say(f"Codex CLI {found.version} at {found.path}")
    return found.path


def own(repo: str, instruction: str) -> Assignment:
    """Prepare the caller's own job, with the caller's own Codex login."""
    if not instruction:
        raise DemoFailed('REPO needs INSTRUCTION="what Codex shall do there"')
    found = install_codex.find()
    if found is None:
        raise DemoFailed("no `codex` on PATH: npm install -g @openai/codex, then codex login")
    arguments: tuple[str, ...] = ("--codex", found.path)
    if repo.startswith("file://"):
        arguments += ("--allow-repository", repo)
    return Assignment(repo, instruction, arguments, OWN_TIMEOUT_S)


def demonstrate(screen: Screen, run: Path, stopping: threading.Event) -> None:
    """Do the whole thing; everything started here has ended when this returns."""
    with ExitStack() as held:
        repo = os.environ.get("REPO", "")
        if repo:
            assignment = own(repo, os.environ.get("INSTRUCTION", ""))
        else:
            assignment = scripted(screen, run, held)
        options = Options(
            data_dir=run / "data",
            environ=dict(os.environ),
            workers=1,
            worker_arguments=assignment.worker_arguments,
        )
        stack = Stack(options, stopping)
        with screen.step("starting servers, ledger, bridge, beat, edge, Flower and one worker"):
            stack.start(screen.say)
        held.callback(_stop, screen, stack)
        show_job(screen, stack, assignment)


def _stop(screen: Screen, stack: Stack) -> None:
    number = len(stack.report()["pids"])
    with screen.step("stopping everything"):
        stack.stop()
    if left := psutil.Process().children(recursive=True):
        raise DemoFailed(f"still running: {left}")
    screen.say(f"{number} processes ended, none is left")


def show_job(screen: Screen, stack: Stack, assignment: Assignment) -> None:
    """Send the task as any orchestrator would, and show what becomes of it."""
    told = stack.report()
    screen.title("the job")
    with (
        Client(told["edgeUrl"], told["operatorToken"]) as edge,
        screen.step("the orchestrator (plain Celery) sends codex_exec and waits"),
        orchestrator(told, assignment) as (process, job_id),
    ):
        screen.say(f"job {job_id} on queue {told['queue']}")
        for event in follow(edge, job_id, alive=_alive(stack, process)):
            screen.event(event["level"], event["message"], event["payload"] or {})
        result = _result(process)
        patch = text_of(edge, job_id, PATCH)
    screen.title("what AsyncResult.get() returned")
    screen.json(result)
    screen.title(PATCH)
    screen.patch(patch or "(no change)")
    screen.title("where to look")
    node = Flower(told["flowerUrl"]).check(job_id, told["workers"][0])
    screen.say(f"Flower   {told['flowerUrl']}/task/{job_id}")
    screen.say(f"         shows {node} online and the task as SUCCESS on it")
    screen.say(f"edge     {told['edgeUrl']}/api/queue/jobs/{job_id}")
    screen.say("         (this stack ends now; `make up` keeps one running)")


def _alive(stack: Stack, process: "subprocess.Popen[str]") -> Callable[[], bool]:
    def alive() -> bool:
        stack.check()
        return process.poll() is None

    return alive


@contextmanager
def orchestrator(
    told: dict[str, Any], assignment: Assignment
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the example orchestrator, which knows Celery and nothing of ours; yield its job's id."""
    argv = [sys.executable, str(ORCHESTRATOR), "--queue", told["queue"]]
    argv += ["--repository", assignment.repository, "--instruction", assignment.instruction]
    argv += ["--timeout", str(assignment.timeout_s)]
    celery = {"CELERY_BROKER_URL": told["brokerUrl"]}
    celery |= {"CELERY_RESULT_BACKEND": told["resultBackend"]}
    with subprocess.Popen(
        argv,
        env={"PATH": os.environ.get("PATH", os.defpath), **celery},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said = process.stderr.readline() if process.stderr else ""
            if not said.startswith("sent "):
                raise DemoFailed(f"the orchestrator failed: {said}{process.communicate()[1]}")
            yield process, said.split()[1]
        finally:
            process.kill()


def _result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate()
    if process.returncode != 0:
        raise DemoFailed(f"the orchestrator was told: {errors.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(output)
    return result


def check_programs() -> None:
    """Refuse at once what would fail later."""
    if shutil.which("git") is None:
        raise DemoFailed("there is no git: apt-get install git, or brew install git")


def main() -> int:
    """Run the demo and return its exit code."""
    screen = Screen()
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    run = RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"  # noqa: DTZ005  # for a person
    run.mkdir(parents=True, mode=0o700)
    try:
        check_programs()
        demonstrate(screen, run, stopping)
    except (KeyboardInterrupt, Stopped):
        shutil.rmtree(run)
        screen.say("stopped", "yellow")
        return 130
    except (
        DemoFailed,
        DrawbridgeError,
        KeepsDying,
        NoServer,
        NotShown,
        StartFailed,
    ) as problem:
        screen.say(str(problem), "bold red")
        if any(run.iterdir()):
            screen.say(f"logs and everything else of this run: {run}")
        else:
            run.rmdir()
        return 1
    shutil.rmtree(run)
    screen.timings()
    return 0


if __name__ == "__main__":
    sys.exit(main())
