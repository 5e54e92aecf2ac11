"""Who works for us: the listing for operators, and its command."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlencode

import pytest
from cachetools import TTLCache
from click.testing import CliRunner
from werkzeug.serving import make_server

from broker import cli
from broker.reservations.keys import ONLINE, SEEN
from tests.contract.edge.conftest import Caller, Edge
from tests.processes import until

HELLO = {"instanceId": "i-1", "version": "1.2.3", "types": ["codex_exec"], "concurrency": 2}


@pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)
def test_workers_are_listed_with_what_they_hold(edge: Edge) -> None:
    user, one, two = edge.user(), edge.worker("w1"), edge.worker("w2")
    assert user.get("/workers").json == {"items": []}
    one.post("/workers/hello", {"workerId": "w1", **HELLO})
    for _ in range(2):
        user.post("/jobs", {"type": "t"})
    held = [one.job() for _ in range(2)]
    two.claim()  # it never said hello
    found = {worker["workerId"]: worker for worker in user.get("/workers").json["items"]}
    assert set(found) == {"w1", "w2"}
    assert HELLO.items() <= found["w1"].items()
    assert [(job["id"], job["fence"]) for job in found["w1"]["heldJobs"]] == [
        (job["id"], job["fence"]) for job in held
    ]
    assert found["w1"]["online"]
    assert not found["w1"]["draining"]
    assert found["w1"]["lastSeenAt"] is not None
    assert (found["w2"]["version"], found["w2"]["types"], found["w2"]["heldJobs"]) == (
        None, None, [],
    )  # fmt: skip


def test_who_is_silent_for_a_minute_is_offline(edge: Edge, user: Caller, worker: Caller) -> None:
    worker.post("/workers/hello", {"workerId": "w1", **HELLO})
    client = edge.services.queue.reservations.client
    for key in (SEEN, ONLINE):
        client.zadd(key, {"w1": client.zscore(key, "w1") - 61_000})
    (found,) = user.get("/workers").json["items"]
    assert not found["online"]
    client.delete(SEEN)  # after a flush the ledger still knows it
    (found,) = user.get("/workers").json["items"]
    assert (found["workerId"], found["online"], found["lastSeenAt"]) == ("w1", False, None)


def test_who_said_goodbye_and_holds_nothing_is_offline_at_once(
    edge: Edge, user: Caller, worker: Caller
) -> None:
    def online() -> tuple[bool, bool]:
        edge.services.presence._marked.clear()  # a worker is marked once a second
        (found,) = user.get("/workers").json["items"]
        return found["online"], found["lastSeenAt"] is not None

    worker.post("/workers/hello", {"workerId": "w1", **HELLO})
    user.post("/jobs", {"type": "t"})
    held, bye = worker.job(), {"workerId": "w1", "instanceId": HELLO["instanceId"]}
    worker.post("/workers/bye", bye)
    assert online() == (True, True)
    worker.say(held["id"], "complete", leaseId=held["leaseId"])
    # the word of a daemon before this one
    worker.post("/workers/bye", bye | {"instanceId": "older"})
    assert online() == (True, True)
    for _ in range(2):
        worker.post("/workers/bye", bye)
        assert online() == (False, True)
    worker.get("/workers/control")
    assert online() == (True, True)


@pytest.mark.parametrize("call", ["claim", "control"])
def test_a_call_that_still_waits_for_a_daemon_that_said_goodbye_brings_nobody_back(
    edge: Edge, user: Caller, worker: Caller, call: str
) -> None:
    waits = {"instanceId": "i", "waitSeconds": 2}
    if call == "claim":
        ask = partial(worker.claim, **waits)
    else:
        ask = partial(worker.get, f"/workers/control?{urlencode(waits)}")
    # nobody is spared a mark for having been marked a moment ago
    edge.services.presence._marked = TTLCache(maxsize=1, ttl=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        until(lambda: len(edge.services.waiting))
        worker.post("/workers/bye", {"workerId": "w1", "instanceId": "i"})
        edge.services.waiting.orders.wake("w1")
        assert waiting.result(timeout=20).status_code == 200
    (found,) = user.get("/workers").json["items"]
    assert not found["online"]


def test_the_limit_keeps_the_last_seen(edge: Edge, user: Caller) -> None:
    for at in range(5):
        edge.services.queue.reservations.mark_seen(f"w{at}", at + 1)
    names = [one["workerId"] for one in user.get("/workers?limit=2").json["items"]]
    assert names == ["w4", "w3"]
    assert user.get("/workers?limit=0").status_code == 422


@pytest.fixture
def url(edge: Edge) -> Iterator[str]:
    """Serve the edge on a real socket."""
    server = make_server("127.0.0.1", 0, edge.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_command_shows_them(edge: Edge, user: Caller, worker: Caller, url: str) -> None:
    token = user.headers["Authorization"].removeprefix("Bearer ")
    env = {"DRAWBRIDGE_EDGE_URL": url, "DRAWBRIDGE_EDGE_TOKEN": token, "COLUMNS": "40"}

    def run(*words: str) -> str:
        done = CliRunner(env=env).invoke(cli.drawbridge, ["workers", "list", *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "No worker" in run()
    worker.post("/workers/hello", {"workerId": "w1", **HELLO, "version": "1\x1b[31m"})
    user.post("/jobs", {"type": "t"})
    job = worker.job()
    shown = run()
    assert "w1" in shown
    assert job["id"] in shown
    assert "\x1b[31m" not in shown
    assert "online" in shown
    user.post("/workers/w1/pause", {"queue": "other"})
    assert "nothing from" in run()
    user.post("/workers/w1/drain")
    assert "draining" in run()
    (line,) = run("--json").splitlines()
    assert json.loads(line) == user.get("/workers").json["items"][0]
