"""What `celery inspect`, `celery status` and `celery events` say of a remote worker and of another.

One task of one app runs on both; the answers are compared field by field, and what differs is in
the table of `broker/bridge/README.md`, no more and no less.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.bridges import ROOT, World, world_of
from tests.processes import Process
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

WAIT_S: Final = 60.0
NODE: Final = "worker-1@edge"
NATIVE: Final = "local@here"
#: what a native worker alone says (-), a remote one alone (+), and what is of another kind (~)
DIFFERENT: Final[Mapping[str, frozenset[str]]] = {
    "ping": frozenset(),
    "active": frozenset(),
    "reserved": frozenset(),
    "scheduled": frozenset(),
    "revoked": frozenset(),
    "registered": frozenset(),
    "active_queues": frozenset(),
    "query_task": frozenset(),
    "report": frozenset(),
    "clock": frozenset(),
    "stats": frozenset(
        {
            "-total.child",
            "+total.jobs",
            "-pool.threads",
            "+pool.processes",
            "-broker.alternates",
            "-broker.connect_timeout",
            "-broker.credential_provider",
            "-broker.failover_strategy",
            "-broker.heartbeat",
            "-broker.insist",
            "-broker.login_method",
            "-broker.port",
            "-broker.ssl",
            "-broker.transport_options",
            "-broker.uri_prefix",
            "-broker.userid",
            "-broker.virtual_host",
            "-rusage.idrss",
            "-rusage.inblock",
            "-rusage.isrss",
            "-rusage.ixrss",
            "-rusage.majflt",
            "-rusage.maxrss",
            "-rusage.minflt",
            "-rusage.msgrcv",
            "-rusage.msgsnd",
            "-rusage.nivcsw",
            "-rusage.nsignals",
            "-rusage.nswap",
            "-rusage.nvcsw",
            "-rusage.oublock",
            "-rusage.stime",
            "-rusage.utime",
        }
    ),
    # what follows is refused: it is about the other machine's process
    "memsample": frozenset({"~", "+error"}),
    "memdump": frozenset({"~", "+error"}),
}


@pytest.fixture
def world(
    start_valkey: Callable[..., Valkey], tmp_path: Path, process: Callable[..., Process]
) -> Iterator[World]:
    with world_of(start_valkey, tmp_path, process) as made:
        made.bridge()
        yield made


def shape(value: Any, at: str = "") -> dict[str, str]:
    """Return the paths of a value with the kind of each; a list is what its members are."""
    if isinstance(value, dict):
        found = {at: "dict"}
        for name, one in value.items():
            found |= shape(one, f"{at}.{name}".lstrip("."))
        return found
    if isinstance(value, list | tuple):
        found = {at: "list"}
        for one in value:
            found |= shape(one, f"{at}[]")
        return found
    return {at: type(value).__name__}


def differences(native: Any, remote: Any) -> set[str]:
    """Say by which fields the answer of a remote worker is not a native one's."""
    ours, theirs = shape(remote), shape(native)
    return (
        {f"-{path}" for path in theirs.keys() - ours.keys()}
        | {f"+{path}" for path in ours.keys() - theirs.keys()}
        | {f"~{path}" for path in theirs.keys() & ours.keys() if theirs[path] != ours[path]}
    )


class Pair:
    """One task that runs on an ordinary worker, and one that runs on a remote one."""

    def __init__(self, world: World, process: Callable[..., Process], gate: Path) -> None:
        self._world = world
        environ = world.own_app
        argv = [sys.executable, "-m", "celery", "-A", "tests.e2e.watched_app", "worker"]
        argv += ["-Q", "local", "-P", "threads", "-c", "2", "-E", "-l", "INFO", "-n", NATIVE]
        worker = process(argv, env=environ, cwd=ROOT)
        self.dump = process(celery(world, "events", "--dump"))
        kwargs = {"gate": str(gate)}
        worker.wait_for("local@here ready")
        world.queue.hello("worker-1", {"concurrency": 2, "types": ["child"], "pid": 4711})
        self.dump.wait_for(r"@here .* heartbeat: ")
        self.native = world.app.send_task("child", kwargs=kwargs, queue="local")
        self.remote = world.send("child", kwargs=kwargs)
        self.job = world.claim()

    def asked(self, question: str, *arguments: Any, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """Ask both the same; answers as soon as both have."""
        self._world.queue.seen("worker-1")
        control = self._world.app.control
        inspect = control.inspect(timeout=timeout_s, destination=[NATIVE, NODE], limit=2)
        answers: dict[str, Any] = getattr(inspect, question)(*arguments) or {}
        return answers


def celery(world: World, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-b", world.broker_url, *arguments]


def test_a_remote_worker_answers_as_an_ordinary_one_but_for_what_is_listed(
    world: World, process: Callable[..., Process], tmp_path: Path
):
    gate = tmp_path / "gate"
    pair = Pair(world, process, gate)
    until(
        lambda: (
            len((found := pair.asked("active", timeout_s=1)).keys()) == 2 and all(found.values())
        ),
        WAIT_S,
        "both are running it",
    )

    found = {question: pair.asked(question) for question in DIFFERENT if question != "query_task"}
    tasks = pair.asked("query_task", pair.native.id, pair.remote.id)
    # by the id of the task, which is the key
    found["query_task"] = {node: list(answer.values()) for node, answer in tasks.items()}
    assert {
        question: differences(answers[NATIVE], answers[NODE]) for question, answers in found.items()
    } == DIFFERENT
    the_values_say_what_is_so(found, pair)
    conf = pair.asked("conf")
    assert shape(conf[NODE]).keys() & shape(conf[NATIVE]).keys() == {""}
    what_differs_is_in_the_readme()

    status = subprocess.run(
        celery(world, "status"), check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert {NATIVE, NODE, "bridge@here"} <= set(re.findall(r"\S+@\w+", status))
    gate.touch()
    world.complete(pair.job, 1)
    the_dump_tells_the_same_of_both(pair)


def the_values_say_what_is_so(found: Mapping[str, Any], pair: Pair) -> None:
    (native,), (remote,) = found["active"][NATIVE], found["active"][NODE]
    assert {name for name in native if native[name] != remote[name]} == {
        "id", "hostname", "time_start", "delivery_info", "worker_pid",
    }  # fmt: skip
    assert (remote["id"], remote["hostname"]) == (pair.remote.id, NODE)
    assert abs(native["time_start"] - remote["time_start"]) < WAIT_S
    assert remote["delivery_info"] == native["delivery_info"] | {"routing_key": "remote"}
    assert found["registered"][NODE] == found["registered"][NATIVE]
    [queue] = found["active_queues"][NODE]
    [other] = found["active_queues"][NATIVE]
    assert {name for name in queue if queue[name] != other[name]} == {
        "name", "exchange", "routing_key",
    }  # fmt: skip
    stats = found["stats"][NODE]
    assert (stats["pool"]["max-concurrency"], stats["pid"]) == (2, 4711)


def what_differs_is_in_the_readme() -> None:
    told = (ROOT / "broker/bridge/README.md").read_text(encoding="utf-8")
    for paths in DIFFERENT.values():
        for path in paths:
            name = path[1:].partition(".")[0]
            assert not name or f"`{name}" in told, path


def the_dump_tells_the_same_of_both(pair: Pair) -> None:
    """Read `celery events --dump`: a line a transition, in order, in the name of who made it."""

    def told(task_id: str) -> list[str]:
        kinds = "received|started|succeeded"
        lines = pair.dump.output().splitlines()
        return [
            f"{line.split()[0]} {found[0]}"
            for line in lines
            if task_id in line and (found := re.findall(kinds, line))
        ]

    until(lambda: len(told(pair.remote.id)) >= 3, WAIT_S, "the dump tells of the remote task")
    until(lambda: len(told(pair.native.id)) >= 3, WAIT_S, "the dump tells of the native task")
    assert told(pair.native.id) == [f"{NATIVE} {k}" for k in ("received", "started", "succeeded")]
    assert told(pair.remote.id) == [
        "bridge@here received", f"{NODE} started", f"{NODE} succeeded",
    ]  # fmt: skip
