"""Attacks on the worker by what it runs: instructions, secrets, resources, escape."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.demo import codex_home, repository
from deploy.demo.model_server import ModelServer
from deploy.demo.scripts import SCRIPTS
from remote_worker.box import Kind
from remote_worker.limits import MIB, Limits
from remote_worker.settings import Settings
from tests.attacks.worker_kit import (
    GOOD,
    TOKEN,
    FakeEdge,
    Run,
    StartWorker,
    boxed,
    client,
    edge,
    make_settings,
    of_job,
    passable,
    run,
    run_git,
    seen,
    source,
    start_worker,
    template,
    token_file,
    waits,
    wire,
)
from tests.processes import until
from tests.services import missing

pytestmark = pytest.mark.timeout(180)

HOSTILE_WORDS = (
    "--dangerously-bypass-approvals-and-sandbox\n-c model=evil\n--sandbox danger-full-access\n"
    "$(touch x) `touch x` ; touch x | & > ' \" \\ \x1b[2J \u202e \U0001f600"
)


@pytest.mark.attack(109)
def test_an_instruction_is_text_on_stdin_and_nothing_else(run: Run, seen: Path) -> None:
    held = run(GOOD, instruction=HOSTILE_WORDS)
    assert held.ended == "complete"
    given = json.loads(seen.read_text())
    assert given["stdin"] == HOSTILE_WORDS
    argv = " ".join(given["argv"])
    assert "dangerously" not in argv
    assert "evil" not in argv
    assert given["argv"][given["argv"].index("--sandbox") + 1] == "workspace-write"
    assert not any("evil" in value for value in given["env"].values())


@pytest.mark.attack(109)
@pytest.mark.parametrize(
    "payload",
    [
        {"instruction": "a\0b"},
        {"instruction": "x" * 300 * 1024},
        {"instruction": "\ud800"},
        {"instruction": ["--help"]},
        {"instruction": "  \n"},
        {"model": "-c x=y"},
        {"model": 'x" sandbox_mode="danger-full-access'},
        {"effort": "high --x"},
        {"codex": {"model": "--yolo"}},
        {"timeLimitSeconds": -1},
        {"timeLimitSeconds": 1e9},
        {"depth": True},
    ],
    ids=lambda payload: repr(payload)[:40],
)
def test_a_payload_that_is_none_runs_nothing(
    run: Run, seen: Path, payload: dict[str, object]
) -> None:
    held = run(GOOD, **payload)
    assert held.report["errorType"] == "invalid_payload"
    assert held.report["retryable"] is False
    assert not seen.exists()


@pytest.mark.attack(109, 110)
@pytest.mark.e2e
@pytest.mark.codex
def test_the_real_codex_shut_in_gets_the_words_and_does_its_work(
    codex: str, boxed: str, edge: FakeEdge, run: Run, tmp_path: Path
) -> None:
    """Its own sandbox works inside of ours where it works at all."""
    clone, home = tmp_path / "repository", tmp_path / "real-codex-home"
    repository.create(clone)
    server = ModelServer(SCRIPTS["edit"])
    with server as url:
        sandbox = codex_home.prepare(home, codex=codex, model_url=url)
        held = run(
            "", repository=f"file://{clone}", instruction=HOSTILE_WORDS,
            settings={
                "codex": codex, "codex_home": home, "codex_sandbox": sandbox, "isolation": boxed,
                "allow_repository": (f"file://{clone}",), "limits": Limits(memory_bytes=4096 * MIB),
            },
        )  # fmt: skip
    assert held.ended == "complete", held.report
    assert "tests/test_farewell.py" in held.report["result"]["changedFiles"]
    assert held.report["result"]["usage"]["output_tokens"] == 75
    assert json.dumps(HOSTILE_WORDS, ensure_ascii=False)[1:-1] in json.dumps(
        server.requests[0], ensure_ascii=False
    )


# Reads all it can reach and says where it found the token.
THIEF = """
import os
token = ("drb_wkr_" + "a" * 12).encode()
found = []
def look(name, path):
    try:
        with open(path, "rb") as file:
            if token in file.read(1 << 22):
                found.append(name)
    except (OSError, ValueError):
        pass
for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
    for name in ("environ", "cmdline"):
        look(name, f"/proc/{pid}/{name}")
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            if os.path.isfile(path):
                look("fd", path)
    except OSError:
        pass
for root in ROOTS:
    look("file", root)
    for folder, folders, files in os.walk(root):
        for name in files:
            look("file", os.path.join(folder, name))
print("FOUND:", sorted(set(found)), "OF", len(os.listdir("/proc")))
open("a.txt", "w").write("changed")
"""


@pytest.mark.attack(110)
def test_no_credential_is_within_reach(
    boxed: str, edge: FakeEdge, start_worker: StartWorker, source: Path, token_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The real daemon, whose token lies where its child may look for it."""
    roots = [str(token_file), str(tmp_path / "work"), str(tmp_path / "hidden")]
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "config").write_text(TOKEN)
    held = edge.offer(repository=f"file://{source}", instruction="Steal.")
    start_worker(
        THIEF.replace("ROOTS", repr(roots)), "--once", "--isolation", boxed,
        "--hide", str(tmp_path / "hidden"),
    ).wait(90)  # fmt: skip
    assert held.ended == "complete", held.report
    said = held.artifacts["logs/codex_exec.log"]["text"]
    assert "FOUND: [] OF" in said
    assert TOKEN not in json.dumps([held.report, list(held.events.values())])


@pytest.mark.attack(110)
@pytest.mark.parametrize("kind", [Kind.BWRAP, Kind.UNSHARE, Kind.NONE])
def test_another_user_reaches_no_credential_whatever_shuts_him_in(
    edge: FakeEdge, start_worker: StartWorker, source: Path, token_file: Path, tmp_path: Path,
    passable: Path, kind: Kind,
) -> None:  # fmt: skip
    """The daemon is root and its children are not: without a box, too, the token is not theirs."""
    if os.getuid() != 0:
        pytest.skip("at home: only root runs children as somebody else")
    work = passable / "work"
    roots = [str(token_file), str(work / "cache"), str(work / "spool"), str(work / "lock")]
    held = edge.offer(repository=f"file://{source}", instruction="Steal.")
    code = THIEF.replace("ROOTS", repr(roots)) + WHO.replace("OUTSIDE", repr(str(work / "jobs")))
    start_worker(
        code, "--once", "--isolation", kind, "--run-as", "nobody", "--work-dir", str(work),
        folder=passable, python="/usr/bin/python3",
    ).wait(90)  # fmt: skip
    assert held.ended == "complete", held.report
    said = held.artifacts["logs/codex_exec.log"]["text"]
    assert "FOUND: [] OF" in said
    assert f"AM: {[65534] * 3} [] LISTED: {[] if kind is Kind.NONE else ['mine']}" in said, said
    assert held.report["result"]["changedFiles"] == ["a.txt", "made/by.me"]
    assert list((work / "jobs").iterdir()) == []


WHO = """
os.mkdir("made")
open("made/by.me", "w").write("mine")
os.chmod("made", 0)
try:
    listed = ["mine" for name in os.listdir(OUTSIDE)]
except OSError:
    listed = []
print("AM:", [os.getuid(), os.geteuid(), os.getgid()], os.getgroups(), "LISTED:", listed)
os.chmod("made", 0o700)
"""


# Each takes too much in its own way, with a companion that flees and is deaf to TERM.
FLEE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        time.sleep(600)
    os._exit(0)
"""
GREED = {
    "forks": (
        (
            "for _ in range(400):\n    try:\n        if os.fork() == 0: time.sleep(600)\n"
            "    except OSError: pass\ntime.sleep(600)\n"
        ),
        {"tasks": 60},
        {"task_limit_exceeded"},
    ),
    "memory": (
        "hoard = []\nwhile True:\n    hoard.append(b'x' * (8 << 20))\n    time.sleep(0.02)\n",
        {"memory_bytes": 256 * MIB},
        {"memory_limit_exceeded"},
    ),
    "disk": (
        (
            "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(os.urandom(1 << 20))\n"
            "    time.sleep(0.01)\n"
        ),
        {"workspace_bytes": 24 * MIB},
        {"workspace_too_large"},
    ),
    "a file": (
        (
            "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nwith open('big', 'wb') as file:\n"
            "    while True: file.write(b'x' * (1 << 20))\n"
        ),
        {"file_bytes": 8 * MIB},
        {"file_limit_exceeded"},
    ),
    "open files": (
        "hoard = []\nwhile True: hoard.append(open('/dev/null'))\n",
        {"open_files": 128},
        {"codex_failed"},
    ),
    "time": ("time.sleep(600)\n", {}, {"time_limit_exceeded"}),
}


@pytest.mark.attack(111)
@pytest.mark.parametrize("greed", sorted(GREED))
@pytest.mark.parametrize("kind", ["auto", "none"])
def test_who_takes_too_much_is_ended_and_nothing_of_it_is_left(
    run: Run, edge: FakeEdge, greed: str, kind: str
) -> None:
    """Meanwhile the job's heartbeats go on, and nobody has waited for an open pipe."""
    code, limits, error_types = GREED[greed]
    held = run(
        FLEE + code,
        settings={"isolation": kind, "limits": Limits(**limits), "time_limit_s": 20},
        timeLimitSeconds=2 if greed == "time" else 60,
    )
    assert held.ended == "fail"
    assert held.report["errorType"] in error_types
    assert held.report["retryable"] is False
    assert of_job(held) == []
    beats = [call for call in edge.calls if call.path.endswith("/heartbeat")]
    assert len(beats) > 1


STUBBORN = (
    FLEE
    + """
open(MARK, "w").write(str(os.getpid()))
time.sleep(600)
"""
)


@pytest.mark.attack(112)
@pytest.mark.parametrize("kind", ["bwrap", "unshare", "none"])
def test_a_killed_daemon_leaves_nothing_running(
    edge: FakeEdge, start_worker: StartWorker, source: Path, tmp_path: Path, kind: str
) -> None:
    mark = tmp_path / "running"
    held = edge.offer(repository=f"file://{source}", instruction="Stay.")
    code = STUBBORN.replace("MARK", repr(str(mark))).replace("os.environ.clear()", "pass")
    worker = start_worker(code, "--isolation", kind)
    worker.until(mark.exists, 60.0, "the agent runs")
    assert of_job(held)
    worker.send(signal.SIGKILL)
    # 5 s is the promise; a machine that is busy with other tests is given more
    until(lambda: not of_job(held), 15.0, "its tree is gone")
    assert held.ended is None
