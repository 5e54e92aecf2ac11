"""What orchestrators and people use: the client, its signatures, and `drawbridge jobs`."""

import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints
from uuid import uuid4

import pytest
from celery import Celery, chain
from click.testing import CliRunner, Result
from kombu import Connection
from werkzeug.serving import make_server

from broker import cli
from broker.client import Client, EdgeAway, EdgeRefused, Publish, codex_exec, shapes
from broker.client.calls import HERE
from broker.commands.jobs_shown import standing
from broker.payload import Message, read
from broker.records import NewJob
from remote_worker.handlers.codex_payload import parse_task
from remote_worker.handlers.publish_payload import Mode
from tests.contract.edge.conftest import Caller, Edge
from tests.tls import Front, certificate

OPENAPI = json.loads((Path(__file__).parents[3] / "edge_api" / "openapi.json").read_text())
Run = Callable[..., Result]


class Line:
    """A wire to the edge on which each call can be given another fate than its answer."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        #: taken first to last: WSGI apps that answer in the edge's place
        self.fates: list[Callable[..., Any]] = []
        self.seen: list[Mapping[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.seen.append(environ)
        app = self.fates.pop(0) if self.fates else self.edge.app
        return app(environ, start_response)


@pytest.fixture
def line(edge: Edge) -> Line:
    return Line(edge)


@pytest.fixture
def url(line: Line) -> Iterator[str]:
    """Serve the edge on a real socket."""
    server = make_server("127.0.0.1", 0, line, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def token(user: Caller) -> str:
    return user.headers["Authorization"].removeprefix("Bearer ")


@pytest.fixture
def client(url: str, token: str) -> Iterator[Client]:
    with Client(url, token, sleep=lambda _: None) as made:
        yield made


@pytest.fixture
def run(url: str, token: str, tmp_path: Path) -> Run:
    """Run `drawbridge jobs` as told by the environment."""
    env = {"DRAWBRIDGE_EDGE_URL": url, "DRAWBRIDGE_EDGE_TOKEN": token, "COLUMNS": "200"}

    def run(*words: str, **more: Any) -> Result:
        return CliRunner(env=env).invoke(cli.drawbridge, ["jobs", *words], **more)

    return run


def answers(status: str, body: bytes, **headers: str) -> Callable[..., Any]:
    """Give an app that answers the same to everything."""

    def app(_: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(status, [(name.replace("_", "-"), value) for name, value in headers.items()])
        return [body]

    return app


def does_and_says(edge: Edge, app: Callable[..., Any]) -> Callable[..., Any]:
    """Let the edge do it, and another answer: what a proxy that loses replies looks like."""

    def both(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        done = edge.app(environ, lambda *_: lambda _: None)
        b"".join(done)
        return app(environ, start_response)

    return both


BUSY = answers("503 Busy", b'{"detail": {"code": "unavailable", "message": "x"}}', Retry_After="3")


@pytest.mark.parametrize(
    "name, shape",
    [
        ("Job", shapes.Job),
        ("Event", shapes.Event),
        ("Artifact", shapes.Artifact),
        ("Attempt", shapes.Attempt),
        ("RedriveItem", shapes.RedriveItem),
        ("RemoteWorker", shapes.RemoteWorker),
        ("HeldJob", shapes.HeldJob),
        ("Standing", shapes.Standing),
        ("Why", shapes.Why),
        ("Reason", shapes.Reason),
        ("Excluded", shapes.Judged),
    ],
)
def test_shapes_have_the_keys_of_the_api(name: str, shape: type):
    assert set(get_type_hints(shape)) == set(OPENAPI["components"]["schemas"][name]["properties"])


def test_a_lost_answer_to_submit_is_asked_for_again_and_makes_one_job(line: Line, client: Client):
    line.fates = [does_and_says(line.edge, BUSY), BUSY]
    job = client.submit("square", {"number": 3}, priority=2, max_attempts=1)
    assert (job["status"], job["priority"], job["maxAttempts"]) == ("queued", 2, 1)
    assert [one["id"] for one in client.jobs()] == [job["id"]]
    assert len(line.seen) == 4


def test_the_pause_is_the_one_the_edge_asks_for(line: Line, url: str, token: str):
    pauses: list[float] = []
    line.fates = [BUSY]
    with Client(url, token, sleep=pauses.append) as client:
        assert list(client.jobs()) == []
    assert len(pauses) == 1
    assert pauses[0] >= 3


def test_a_refusal_says_the_contracts_word(client: Client, line: Line):
    with pytest.raises(EdgeRefused, match="no such job") as caught:
        client.job("nonsense")
    assert (caught.value.status, caught.value.reason) == (404, "job_not_found")
    with pytest.raises(EdgeRefused) as caught:
        client.submit("", {})
    assert (caught.value.status, caught.value.reason) == (422, "invalid_queue_payload")
    with pytest.raises(EdgeRefused, match="404"):
        client.job("../../../healthz")
    assert len(line.seen) == 3


@pytest.mark.parametrize(
    "page",
    [
        answers("200 OK", b"<html>log in first</html>", Content_Type="text/html"),
        answers("502 Bad Gateway", b"<html>oops</html>", Content_Type="text/html"),
        answers("307 Elsewhere", b"", Location="http://127.0.0.1:9/stolen"),
        answers("404 Not Found", b"[]"),
    ],
)
def test_what_is_no_edge_is_not_believed(page: Callable[..., Any], line: Line, client: Client):
    line.fates = [page]
    with pytest.raises(EdgeAway):
        client.job("x")
    assert len(line.seen) == 1


def test_an_edge_that_is_not_there_is_away():
    pauses: list[float] = []
    with (
        Client("http://127.0.0.1:1", "t", sleep=pauses.append) as client,
        pytest.raises(EdgeAway, match="does not answer: Connection refused"),
    ):
        client.job("x")
    assert len(pauses) == 5


def test_a_certificate_that_nobody_knows_is_said_at_once(tmp_path: Path):
    pauses: list[float] = []
    with (
        Front(1, certificate(tmp_path / "pem")) as front,
        Client(f"https://127.0.0.1:{front.port}", "t", sleep=pauses.append) as client,
        pytest.raises(EdgeAway, match=r"self-signed certificate; REQUESTS_CA_BUNDLE"),
    ):
        client.job("x")
    assert pauses == []


def test_follow_reads_to_the_last_entry(client: Client, worker: Caller):
    job_id = client.submit("square", {})["id"]
    followed = client.follow(job_id)
    assert next(followed)["message"] == "Job queued"
    held = worker.job()
    worker.say(job_id, "events", message="half way")
    worker.say(job_id, "complete", leaseId=held["leaseId"], resultSummary="nine")
    assert [one["message"] for one in followed] == ["Job claimed", "half way", "Job completed"]


def test_follow_waits_for_a_job_that_the_bridge_has_not_brought(url: str, token: str):
    task_id = "5f1b9f0e-7d9b-4c63-9a51-0f6a4a3a9a11"
    pauses: list[float] = []
    with Client(url, token, sleep=pauses.append) as client:
        with pytest.raises(EdgeRefused):
            next(client.follow(task_id, unknown_s=1.0))
        assert sum(pauses) == pytest.approx(1.0, abs=0.2)


def test_a_download_is_whole_and_verified_or_not_there(
    client: Client, worker: Caller, line: Line, tmp_path: Path
):
    job_id = client.submit("square", {})["id"]
    worker.job()
    upload(worker, job_id, "logs/out.txt", b"hello")
    (artifact,) = client.artifacts(job_id)
    assert client.download(artifact, tmp_path / "out.txt").read_bytes() == b"hello"
    line.fates = [answers("200 OK", b"hell0")]
    with pytest.raises(EdgeAway, match="damaged"):
        client.download(artifact, tmp_path / "bad.txt")
    line.fates = [answers("200 OK", b"hel", Content_Length="5")]
    with pytest.raises(EdgeAway, match=r"cut off|damaged"):
        client.download(artifact, tmp_path / "bad.txt")
    assert [path.name for path in tmp_path.glob("*.txt")] == ["out.txt"]
    assert not list(tmp_path.glob(".*.txt*"))


def test_a_signature_asks_for_what_the_worker_understands():
    with Celery(broker="memory://", set_as_current=False) as app:
        wanted = codex_exec(
            "org/name",
            "Fix it",
            ref="main",
            model="gpt-5",
            effort="high",
            time_limit_seconds=60,
            depth=0,
            publish=Publish(mode="pr", base_branch="main", title="A fix"),
            max_attempts=1,
            required_capabilities=["gpu"],
            app=app,
        )
        job = sent(app, wanted, "remote")
    assert (job.type, job.queue, job.max_attempts) == ("codex_exec", "remote", 1)
    assert job.required_capabilities == ("gpu",)
    task = parse_task(job.payload)
    assert (task.repository.canonical, task.ref, task.model) == (
        "github.com/org/name", "main", "gpt-5",
    )  # fmt: skip
    assert (task.effort, task.time_limit_s, task.depth) == ("high", 60, 0)
    assert (task.publish.mode, task.publish.base_branch) == (Mode.PR, "main")


def test_a_signature_stands_in_a_chain():
    with Celery(broker="memory://", set_as_current=False) as app:
        first = app.signature("prep", queue="local")
        whole = chain(first, codex_exec("o/n", "x", max_attempts=2, app=app), app=app)
        last = whole.tasks[-1]
        assert last.task == "codex_exec"
        assert last.options["headers"] == {"drawbridge": {"maxAttempts": 2}}
        assert codex_exec("o/n", "x", immutable=True, app=app).immutable


def sent(app: Celery, signature: Any, queue: str) -> NewJob:
    """Send for real, and read what lies in the broker as the bridge does."""
    signature.apply_async()
    with Connection("memory://") as connection:
        simple = connection.SimpleQueue(queue)
        message = simple.get(timeout=5)
        message.ack()
        simple.close()
    job = read(
        Message(
            queue=queue,
            body=message.body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            properties=message.properties,
        )
    )
    assert isinstance(job, NewJob), job
    return job


def upload(worker: Caller, job_id: str, name: str, content: bytes) -> None:
    data = {"workerId": worker.worker_id, "name": name, "file": (io.BytesIO(content), "f")}
    answer = worker.call("POST", f"/jobs/{job_id}/artifacts/upload", data=data)
    assert answer.status_code == 201, answer.text


# -- the command line ----------------------------------------------------------------------


def test_jobs_from_the_command_line(run: Run, worker: Caller, tmp_path: Path):
    made = run("submit", "square", "--payload", '{"n": 1}', "--set", "n=2", "--set", "who=me")
    job_id = made.output.strip()
    shown = json.loads(run("show", job_id, "--json").output)
    assert (shown["payload"], shown["attempts"]) == ({"n": 2, "who": "me"}, [])
    assert job_id in run("list", "--status", "queued").output
    assert run("list", "--type", "other").output == "No such jobs.\n"

    held = worker.job()
    worker.say(job_id, "events", message="half\x1b[2Jway [red]", level="warn")
    upload(worker, job_id, "logs/out.txt", b"hello")
    worker.say(job_id, "complete", leaseId=held["leaseId"], resultSummary="four")

    watched = run("watch", job_id)
    assert watched.exit_code == 0
    assert "WARN  half\\x1b[2Jway [red]" in watched.stdout
    assert watched.stdout.splitlines()[-1] == f"{job_id}  succeeded  four"
    assert run("logs", job_id).stdout.splitlines() == watched.stdout.splitlines()[:-1]
    assert "logs/out.txt" in run("show", job_id).output
    got = run("download", job_id, "--to", str(tmp_path / "files"))
    assert Path(got.output.strip()).read_bytes() == b"hello"
    assert run("download", job_id, "--name", "nothing").exit_code == 1
    nothing = run("redrive", job_id, str(uuid4()))
    assert (nothing.output.split()[1::2], nothing.exit_code) == (["not_dead", "not_found"], 1)
    # nothing is left to cancel or to bring back
    assert run("cancel", job_id).exit_code == 1
    assert run("redrive", job_id).output == f"{job_id}  not_dead\n"


def test_why_a_job_waits_is_told_by_worker_and_rule(run: Run, edge: Edge, user: Caller):
    job_id = run("submit", "square", "--set", "n=2").output.strip()
    assert "no worker was seen" in run("why", job_id).output
    assert '{"n": 2}' in run("show", job_id).output
    edge.worker("other", types=("circle",)).post("/jobs/claim", {"workerId": "other"})
    edge.worker("fits").post("/workers/hello", {"workerId": "fits", "types": ["square"]})
    first, *workers = run("why", job_id).output.splitlines()
    assert first == "The job is queued, on queue remote."
    assert [one.partition(":")[0] for one in sorted(workers)] == [
        "fits may take it", "other may not, by allowedJobTypes",
    ]  # fmt: skip
    said = json.loads(run("why", job_id, "--json").output)
    assert {one["workerId"]: one["eligible"] for one in said["workers"]} == {
        "fits": True, "other": False,
    }  # fmt: skip
    user.post(f"/jobs/{job_id}/cancel")
    assert run("why", job_id).output.startswith("The job is cancelled")


def test_on_a_terminal_it_is_said_how_far_a_watched_job_is(run: Run, user: Caller, worker: Caller):
    job_id = run("submit", "codex_exec").stdout.strip()
    job = worker.job()
    mine = {"leaseId": job["leaseId"], "leaseSeconds": 60}
    said = {"percent": 40.5, "message": "clo\x1bning"}
    worker.say(job_id, "heartbeat", **mine, progress=said)
    assert "40.5 % clo\\x1bning" in run("show", job_id).stdout
    running = standing(json.loads(run("show", job_id, "--json").stdout))
    assert running.endswith(": 40.5 % clo\\x1bning; Ctrl-C leaves it alone")
    worker.say(job_id, "complete", leaseId=job["leaseId"], resultSummary="four")
    watched = run("watch", job_id, env={"FORCE_COLOR": "1"})
    assert watched.exit_code == 0
    assert "succeeded; Ctrl-C leaves it alone" in watched.stderr
    assert watched.stdout.splitlines()[-1] == f"{job_id}  succeeded  four"


def test_ctrl_c_leaves_a_watched_job_alone(
    run: Run, worker: Caller, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "events", interrupt)
    job_id = run("submit", "codex_exec").stdout.strip()
    watched = run("watch", job_id)
    assert watched.exit_code == 130
    assert f"drawbridge jobs watch {job_id}" in watched.stderr
    assert json.loads(run("show", job_id, "--json").stdout)["status"] == "queued"


def test_watching_a_job_that_fails_exits_3(run: Run, worker: Caller):
    job_id = json.loads(run("submit", "square", "--json").output)["id"]
    held = worker.job()
    worker.say(job_id, "fail", leaseId=held["leaseId"], errorMessage="no luck")
    watched = run("watch", job_id, "--json")
    assert watched.exit_code == 3
    lines = [json.loads(one) for one in watched.stdout.splitlines()]
    assert lines[-1]["errorMessage"] == "no luck"
    assert [one["seq"] for one in lines[:-1]] == [1, 2, 3]
    assert run("redrive", job_id, "--dry-run").output == f"{job_id}  matched\n"
    assert run("redrive", job_id).output == f"{job_id}  redriven\n"
    assert run("cancel", job_id, "--reason", "enough").output == f"{job_id}  cancelled  enough\n"


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["submit", "x", "--payload", "[]"], 2, "must be a JSON object"),
        (["submit", "x", "--payload", "@/nowhere"], 2, "No such file"),
        (["submit", "x", "--set", "novalue"], 2, "is not KEY=VALUE"),
        (["show", "nonsense"], 1, "no such job"),
        (["--edge-url", "ftp://x", "list"], 1, "is no address"),
        (["--token-file", "/nowhere", "list"], 1, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(run: Run, words: list[str], code: int, says: str):
    answer = run(*words)
    assert answer.exit_code == code
    assert says in answer.output


def test_without_an_edge_or_a_token_the_way_out_is_said(tmp_path: Path):
    bare = CliRunner(env={"DRAWBRIDGE_EDGE_URL": None, "DRAWBRIDGE_EDGE_TOKEN": None})
    assert "--edge-url" in bare.invoke(cli.drawbridge, ["jobs", "list"]).output
    to = ["jobs", "--edge-url", "http://127.0.0.1:1", "list"]
    assert "tokens create" in bare.invoke(cli.drawbridge, to).output


def test_a_token_that_goes_in_the_clear_is_said(
    monkeypatch: pytest.MonkeyPatch, url: str, token: str
):
    env = {"DRAWBRIDGE_EDGE_URL": url, "DRAWBRIDGE_EDGE_TOKEN": token}
    for here, warned in ((HERE, False), (frozenset(), True)):
        monkeypatch.setattr("broker.commands.asking.HERE", here)
        said = CliRunner(env=env).invoke(cli.drawbridge, ["jobs", "list"])
        assert said.exit_code == 0
        assert ("in the clear" in said.stderr) is warned


def test_a_token_may_lie_in_a_file(url: str, token: str, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(token + "\n")
    words = ["jobs", "--edge-url", url, "--token-file", str(file), "list", "--json"]
    assert CliRunner().invoke(cli.drawbridge, words).exit_code == 0


def test_workers_are_steered_from_the_command_line(url: str, edge: Edge, token: str):
    edge.worker("w1")
    runner = CliRunner(env={"DRAWBRIDGE_EDGE_URL": url, "DRAWBRIDGE_EDGE_TOKEN": token})

    def say(*words: str) -> Result:
        return runner.invoke(cli.drawbridge, ["workers", *words])

    for _ in range(2):
        assert say("drain", "w1").output == "w1  drains  up to its own --concurrency at once\n"
    assert say("concurrency", "w1", "3").output == "w1  drains  at most 3 at once\n"
    assert say("resume", "w1").output == "w1  claims  at most 3 at once\n"
    assert say("concurrency", "w1").output == "w1  claims  up to its own --concurrency at once\n"
    assert say("pause", "w1", "remote").output.endswith("once  nothing from remote\n")
    assert (
        say("unpause", "w1", "remote").output == "w1  claims  up to its own --concurrency at once\n"
    )
    nobody = say("drain", "nobody")
    assert nobody.exit_code == 1
    assert "no such worker" in nobody.output.lower()


def test_no_proxy_is_asked_for_an_edge_of_this_machine(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert list(client.jobs()) == []
