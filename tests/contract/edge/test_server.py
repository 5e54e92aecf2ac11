"""The edge as a process: `drawbridge edge`, spoken to over real sockets."""

import hashlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.contract.edge.served import COMMAND, Served, StartProcess
from tests.processes import until

pytestmark = pytest.mark.slow

LONG_S = 50
MIB = 1024 * 1024


def refused(process: StartProcess, env: dict[str, str], *options: str) -> str:
    """Start an edge that must refuse to start, and return its one line."""
    started = process([COMMAND, "edge", "--port", "0", *options], env=env, stdout_apart=True)
    assert started.wait() == 1
    assert started.stdout() == ""
    (line,) = started.output().strip().splitlines()
    return line


def test_it_serves_and_stops(served: Served) -> None:
    assert served.call("GET", "/readyz") == (200, {"status": "ok"})
    assert served.claim() is None
    job = served.call("POST", "/api/queue/jobs", {"type": "t"})[1]
    assert served.claim()["id"] == job["id"]
    watched = [served.serving]
    assert served.process.terminate() == 0
    assert not psutil.wait_procs(watched, timeout=0)[1]
    # one line on stdout, JSON and nothing secret in the log
    assert served.process.stdout().count("\n") == 1
    log = served.process.output()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"worker": "w1", "status": 200, "action": "request"}.items() <= max(
        lines, key=lambda line: "worker" in line
    ).items()
    for token in (served.operator, served.worker):
        assert token.split("_")[3] not in log


def test_sigterm_ends_the_waits_at_once(served: Served) -> None:
    with ThreadPoolExecutor(20) as pool:
        before = served.serving.num_threads()
        waiting = [pool.submit(served.claim, waitSeconds=LONG_S) for _ in range(20)]
        until(lambda: served.serving.num_threads() >= before + 20)
        asked = time.monotonic()
        served.process.send(signal.SIGTERM)
        # an answer, and no connection reset
        assert [claim.result(LONG_S) for claim in waiting] == [None] * 20
        assert time.monotonic() - asked < LONG_S / 2
    assert served.process.wait() == 0


def test_ctrl_c_ends_it_too(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        before = served.serving.num_threads()
        waiting = pool.submit(served.claim, waitSeconds=LONG_S)
        until(lambda: served.serving.num_threads() > before)
        served.process.send(signal.SIGINT)
        assert served.process.wait() == 0
        waiting.exception(LONG_S)


def test_a_killed_server_is_replaced(served: Served) -> None:
    killed = served.serving
    killed.kill()
    until(lambda: psutil.Process(served.process.pid).children() not in ([], [killed]))
    assert served.call("GET", "/healthz") == (200, {"status": "ok"})
    assert served.process.stdout().count("\n") == 1


def test_an_answer_leaves_in_one_segment(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as sock:
        for _ in range(50):
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            first = sock.recv(65536)
            assert first.endswith(b'{"status":"ok"}\n'), first


def test_no_answer_waits_for_an_acknowledgement(served: Served) -> None:
    connection = served.connect()
    took = []
    for _ in range(40):
        began = time.perf_counter()
        served.call("GET", "/healthz", connection=connection)
        took.append(time.perf_counter() - began)
    # a reply held back for a delayed ACK takes 40 ms, every time
    assert sorted(took)[len(took) // 4] < 0.03


def test_heartbeats_pass_while_claims_wait(served: Served) -> None:
    with ThreadPoolExecutor(40) as pool:
        # 60 threads less the reserve of 38: some wait, the others are told to come back
        waiting = [
            pool.submit(
                served.call,
                "POST",
                "/api/queue/jobs/claim",
                {
                    "workerId": "w1",
                    "leaseSeconds": 60,
                    "waitSeconds": LONG_S,
                    "allowedTypes": ["x"],
                },
                token=served.worker,
            )
            for _ in range(40)
        ]
        until(lambda: sum(claim.done() for claim in waiting) == 18)
        assert {claim.result()[0] for claim in waiting if claim.done()} == {503}
        served.call("POST", "/api/queue/jobs", {"type": "t"})
        job = served.claim()
        path = f"/api/queue/jobs/{job['id']}/heartbeat"
        beat = {"workerId": "w1", "leaseSeconds": 60}
        assert served.call("POST", path, beat, token=served.worker)[0] == 200
        served.process.send(signal.SIGTERM)


HEAD = "POST /api/queue/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_text,status,code",
    [
        ("GET /" + "x" * 20_000 + " HTTP/1.1\r\n\r\n", 414, "uri_too_long"),
        (HEAD + "X-A: " + "a" * 100_000 + "\r\n\r\n", 431, "request_header_fields_too_large"),
        (HEAD + "X-A: a\r\n" * 300 + "\r\n", 431, "request_header_fields_too_large"),
        ("nonsense\r\n\r\n", 400, "bad_request"),
        (HEAD + "A b: c\r\n\r\n", 400, "bad_request"),
        (HEAD + "Content-Length: -1\r\n\r\n", 400, "bad_request"),
        (HEAD + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (HEAD + "Transfer-Encoding: gzip\r\n\r\n", 400, "bad_request"),
        (HEAD + "Transfer-Encoding: foo\r\n\r\n", 501, "not_implemented"),
        ("GET /healthz HTTP/9.9\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_no_http_is_refused_in_our_words(
    served: Served, request_text: str, status: int, code: str
) -> None:
    head, body = served.raw(request_text.encode())
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"X-Request-Id: " in head
    assert json.loads(body)["detail"]["code"] == code
    assert served.call("GET", "/healthz")[0] == 200


def test_a_json_body_must_announce_its_length(served: Served) -> None:
    head = HEAD + f"Authorization: Bearer {served.operator}\r\nContent-Type: application/json\r\n"
    for rest in (
        'Transfer-Encoding: chunked\r\n\r\nc\r\n{"type": "t"\r\n1\r\n}\r\n0\r\n\r\n',
        "\r\n",
    ):
        answer, body = served.raw((head + rest).encode())
        assert answer.startswith(b"HTTP/1.1 411 ")
        assert json.loads(body)["detail"]["code"] == "length_required"


def test_nobody_tells_the_app_where_it_is(served: Served) -> None:
    auth = f"Authorization: Bearer {served.operator}\r\n"
    for header in ("SCRIPT_NAME: /api", "Script-Name: /api", "PATH_INFO: /healthz"):
        head, _ = served.raw((HEAD.replace("POST", "GET") + auth + f"{header}\r\n\r\n").encode())
        assert head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


class Stream:
    """A file of a form, made as it is sent: bytes nobody holds."""

    def __init__(self, size: int) -> None:
        fields = {"workerId": "w1", "name": "big.bin"}
        text = "".join(
            f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
            for n, v in fields.items()
        )
        text += '--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        self.head, self.tail = text.encode(), b"\r\n--B--\r\n"
        self.chunks = size // MIB
        self.chunk = bytes(range(256)) * 4096

    def __len__(self) -> int:
        return len(self.head) + self.chunks * len(self.chunk) + len(self.tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        yield from (self.chunk for _ in range(self.chunks))
        yield self.tail


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_file_is_never_held(served: Served, chunked: bool) -> None:
    served.call("POST", "/api/queue/jobs", {"type": "t"})
    job_id = served.claim()["id"]
    served.call("GET", "/healthz")
    rss = served.serving.memory_info().rss
    body = Stream(64 * MIB)
    connection = served.connect()
    headers = {
        "Authorization": f"Bearer {served.worker}",
        "Content-Type": "multipart/form-data; boundary=B",
    }
    if not chunked:
        headers["Content-Length"] = str(len(body))
    peak = Peak(served.serving)
    with peak:
        connection.request(
            "POST", f"/api/queue/jobs/{job_id}/artifacts/upload", iter(body), headers,
            encode_chunked=chunked,
        )  # fmt: skip
        response = connection.getresponse()
        stored = json.loads(response.read())
    assert response.status == 201, stored
    assert stored["sizeBytes"] == 64 * MIB
    whole = hashlib.sha256()
    for _ in range(64):
        whole.update(body.chunk)
    assert stored["digest"] == f"sha256:{whole.hexdigest()}"
    assert peak.rss - rss < 12 * MIB


class Peak:
    """The most memory a process held, looked at all the while."""

    def __init__(self, process: psutil.Process) -> None:
        self.rss = 0
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            self.rss = max(self.rss, self._process.memory_info().rss)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_an_upload_cut_short_leaves_nothing(served: Served, environment: dict[str, str]) -> None:
    served.call("POST", "/api/queue/jobs", {"type": "t"})
    job_id = served.claim()["id"]
    body = Stream(4 * MIB)
    head = (
        f"POST /api/queue/jobs/{job_id}/artifacts/upload HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {served.worker}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    )
    folder = Path(environment["DRAWBRIDGE_ARTIFACTS_DIR"])
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as sock:
        sock.sendall(head.encode() + body.head + body.chunk)
        until(lambda: list(folder.glob("tmp/*")))
    until(lambda: not list(folder.glob("tmp/*")))
    assert not list(folder.glob("sha256/*/*"))
    path = f"/api/queue/jobs/{job_id}/artifacts"
    assert served.call("GET", path) == (200, {"items": []})


def test_a_broker_in_its_environment_is_refused(
    process: StartProcess, environment: dict[str, str]
) -> None:
    for name in ("CELERY_BROKER_URL", "DRAWBRIDGE_BROKER_URL"):
        line = refused(process, environment | {name: "redis://:secret@127.0.0.1/0"})
        assert name in line
        assert "secret" not in line


def test_wrong_settings_are_refused_in_one_line(
    process: StartProcess, environment: dict[str, str]
) -> None:
    line = refused(process, environment | {"DRAWBRIDGE_DATABASE_URL": "mysql://x/y"})
    assert "SQLite or PostgreSQL" in line
    line = refused(process, environment | {"DRAWBRIDGE_RESERVATIONS_URL": "localhost"})
    assert "reservations URL" in line
    assert "DRAWBRIDGE_NO" in refused(process, environment | {"DRAWBRIDGE_NO": "x"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "edge.example", "192.168.1.1"])  # noqa: S104
def test_without_credentials_it_listens_on_loopback_alone(
    process: StartProcess, environment: dict[str, str], host: str
) -> None:
    line = refused(process, environment | {"AUTH_PROVIDER": "disabled"}, "--host", host)
    assert "loopback" in line


def test_without_credentials_this_machine_is_the_operator(
    process: StartProcess, environment: dict[str, str]
) -> None:
    env = environment | {"AUTH_PROVIDER": "disabled"}
    argv = [COMMAND, "edge", "--port", "0", "--host", "localhost"]
    started = process(argv, env=env, stdout_apart=True)
    said = started.wait_for(r"^The edge listens on http://127\.0\.0\.1:(\d+)$")
    with closing(http.client.HTTPConnection("127.0.0.1", int(said[1]), timeout=30)) as connection:
        connection.request("GET", "/api/queue/jobs", headers={"X-Request-Id": "<no name>"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["items"]) == (200, [])
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])
    assert "whoever calls from this machine is an operator" in started.output()
