"""An edge that speaks the contract over real HTTP and does what a test tells it to."""

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

JSON = dict[str, Any]
TOKEN = "drb_wkr_" + "a" * 12 + "_" + "b" * 43 + "_" + "c" * 6
WORKER = "w1"
_TEXT_BYTES = 1024 * 1024
_ENDS = ("complete", "fail", "release", "cancel/ack")
_JOB = re.compile(r"/api/queue/jobs/([^/]+)/(.+)")


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    path: str
    body: JSON
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What a test wants to be answered instead."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    #: the work is done, and the reply is lost on its way
    cut: bool = False


@dataclass(frozen=True)
class Shown:
    """A token that nobody replaces."""

    current: str = TOKEN

    def replaced(self, _refused: str) -> bool:
        return False


def refusal(status: int, code: str) -> Answer:
    """Return the contract's error."""
    return Answer(status, json.dumps({"detail": {"code": code, "message": "no"}}).encode())


def error_page(status: int) -> Answer:
    """Return what a proxy says."""
    return Answer(status, b"<html>Bad gateway</html>", (("Content-Type", "text/html"),))


@dataclass
class Held:
    """A job at the edge."""

    job: JSON
    ended: str | None = None
    cancel: bool = False
    lost: bool = False
    events: dict[int, JSON] = field(default_factory=dict)
    artifacts: dict[str, JSON] = field(default_factory=dict)
    report: JSON = field(default_factory=dict)

    @property
    def messages(self) -> list[str]:
        """Return what the worker said."""
        return [self.events[seq]["message"] for seq in sorted(self.events)]


class FakeEdge:
    """A server on a free loopback port."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.jobs: dict[str, Held] = {}
        self.waiting: list[JSON] = []
        self.replay: dict[str, JSON] = {}
        self.drain = False
        self.token = TOKEN
        #: nothing is answered but by a proxy that says so
        self.silent = False
        self.features = ["release"]
        #: cursor and list of orders, once the edge gives any
        self.orders: JSON = {"cursor": 0, "orders": []}
        self._instead: list[tuple[str, Answer, int]] = []
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closing = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def offer(self, job_type: str = "codex_exec", **payload: object) -> Held:
        """Put a job into the queue."""
        job = {
            "id": str(uuid.uuid4()),
            "type": job_type,
            "payload": payload,
            "attempt": 1,
            "fence": 7,
            "leaseId": uuid.uuid4().hex,
        }
        return self.offer_raw(job)

    def offer_raw(self, job: JSON) -> Held:
        """Put anything into the queue."""
        with self._changed:
            held = self.jobs[str(job.get("id"))] = Held(job)
            self.waiting.append(job)
            self._changed.notify_all()
            return held

    def instead(self, path: str, answer: Answer, *, times: int = 1) -> None:
        """Answer the next requests whose path ends so in another way."""
        with self._lock:
            self._instead.append((path, answer, times))

    def forgive(self) -> None:
        """Answer as an edge does from now on."""
        with self._lock:
            self._instead.clear()

    def asked(self, path: str) -> list[Call]:
        """Return the requests whose path ends so."""
        with self._lock:
            return [call for call in self.calls if call.path.endswith(path)]

    def _special(self, path: str) -> Answer | None:
        for number, (end, answer, times) in enumerate(self._instead):
            if path.endswith(end):
                if times == 1:
                    del self._instead[number]
                else:
                    self._instead[number] = (end, answer, times - 1)
                return answer
        return None

    def respond(self, call: Call) -> Answer:
        """Do what is asked and return the answer."""
        with self._changed:
            self.calls.append(call)
            if self.silent:
                return error_page(502)
            special = self._special(call.path)
            if special is not None and not special.cut:
                return special
            if call.path in ("/healthz", "/readyz"):
                return _ok({"status": "ok"})
            if call.headers.get("Authorization") != f"Bearer {self.token}":
                return refusal(401, "worker_auth_failed")
            if call.body and call.body.get("workerId") != WORKER:
                return refusal(403, "worker_not_authorized")
            done = self._route(call)
            return Answer(cut=True) if special is not None else done

    def _route(self, call: Call) -> Answer:
        own: dict[str, Callable[[], JSON]] = {
            "/workers/hello": lambda: {"workerId": WORKER, "features": self.features},
            "/workers/bye": lambda: {"workerId": WORKER},
            "/workers/control": lambda: self._control(call),
            "/jobs/claim": lambda: self._claim(call),
        }
        path = call.path.partition("?")[0].removeprefix("/api/queue")
        if path in own:
            return _ok(own[path]())
        match = _JOB.fullmatch(call.path)
        held = self.jobs.get(match[1]) if match else None
        if match is None or held is None:
            return refusal(404, "job_not_found")
        if held.ended or held.lost or call.body.get("leaseId") != held.job.get("leaseId"):
            return refusal(409, "job_ownership_mismatch")
        verbs: dict[str, Callable[[Call, Held], JSON]] = {
            "heartbeat": self._heartbeat,
            "events": self._events,
            "artifacts/upload": self._upload,
        }
        if match[2] in verbs:
            done = verbs[match[2]](call, held)
            return Answer(201, json.dumps(done).encode()) if match[2] != "heartbeat" else _ok(done)
        if match[2] not in _ENDS:
            # as an edge from before there were uploads in parts
            return refusal(404, "not_found")
        held.ended, held.report = match[2], call.body
        self._changed.notify_all()
        return _ok(held.job)

    def order(self, *orders: JSON) -> None:
        """Say how orders stand from now on; a claim that waits ends for them."""
        with self._changed:
            self.orders = {"cursor": self.orders["cursor"] + 1, "orders": list(orders)}
            self._changed.notify_all()

    def _control(self, call: Call) -> JSON:
        asked = dict(part.split("=") for part in call.path.partition("?")[2].split("&"))
        self._changed.wait_for(
            lambda: self.orders["cursor"] > int(asked["cursor"]) or self._closing,
            timeout=min(int(asked["waitSeconds"]), 5),
        )
        new = self.orders["cursor"] > int(asked["cursor"])
        return self.orders if new else {"cursor": int(asked["cursor"]), "orders": []}

    def _claim(self, call: Call) -> JSON:
        key = call.headers["Idempotency-Key"]
        if key in self.replay:
            return self.replay[key]
        wait = min(call.body["waitSeconds"], 5)
        cursor = self.orders["cursor"]
        self._changed.wait_for(
            lambda: self.waiting or self._closing or self.orders["cursor"] > cursor, timeout=wait
        )
        jobs = self.waiting[: call.body["maxJobs"]]
        del self.waiting[: len(jobs)]
        answer = {"job": jobs[0] if jobs else None, "jobs": jobs}
        if jobs:
            self.replay[key] = answer
        return answer

    def _heartbeat(self, call: Call, held: Held) -> JSON:
        return held.job | {
            "cancelRequestedAt": "2026-01-01T00:00:00Z" if held.cancel else None,
            "drain": self.drain,
            "expiresIn": call.body["leaseSeconds"],
        }

    def _events(self, call: Call, held: Held) -> JSON:
        for event in call.body["events"]:
            held.events.setdefault(event["workerSeq"], event)
        return {"items": call.body["events"]}

    def _upload(self, call: Call, held: Held) -> JSON:
        name = call.body["name"]
        artifact = {"id": f"artifact-{name}", **call.body}
        return held.artifacts.setdefault(name, artifact)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one segment.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    @property
    def edge(self) -> FakeEdge:
        assert isinstance(self.server, _Server)
        return self.server.edge

    def do_GET(self) -> None:
        self._reply(self.edge.respond(Call(self.path, {}, dict(self.headers))))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = _body(raw, self.headers["Content-Type"])
        self._reply(self.edge.respond(Call(self.path, body, dict(self.headers))))

    def _reply(self, answer: Answer) -> None:
        if answer.cut:
            self.close_connection = True
            return
        self.send_response(answer.status)
        if self.edge.orders["cursor"]:
            self.send_header("Bridge-Control-Cursor", str(self.edge.orders["cursor"]))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that was killed hangs up as it likes."""

    def __init__(self, edge: FakeEdge) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.edge = edge


def _body(raw: bytes, kind: str) -> JSON:
    """Read JSON, or a form: its fields, and of its file the size and the text."""
    if kind == "application/json":
        return dict(json.loads(raw))
    boundary = kind.partition("boundary=")[2].encode()
    fields: JSON = {}
    for part in raw.split(b"--" + boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name is not None
        value = value.removesuffix(b"\r\n")
        if name[1] == b"file":
            # of 8 MiB that are no text Python takes more than a minute to replace each byte
            text = value[:_TEXT_BYTES].decode(errors="replace")
            fields["size"], fields["text"] = len(value), text
        else:
            fields[name[1].decode()] = value.decode()
    return fields


def _ok(body: JSON) -> Answer:
    return Answer(200, json.dumps(body).encode())
