"""Whoever gives work and watches it: over Celery, over HTTP, with poison, cancels and a cursor."""

import json
import random
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any, Final

from celery import Celery, chain
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from tests.chaos.brokers import AWAY, JSON, Raw, broker_at
from tests.chaos.edge import Answer, Edge, insist
from tests.chaos.promises import PromiseLog
from tests.chaos.reading import Places
from tests.chaos.workers import Mood

#: What is asked for, and how often out of a hundred.
KINDS: Final = {
    "plain": 36, "http": 20, "link": 7, "chain": 6, "eta": 6, "expires": 6, "gpu": 6, "twice": 5,
    "poison": 5, "nameless": 3,
}  # fmt: skip
LINK: Final = "local.note"
#: A type that no worker may run: it can only expire.
NOBODY: Final = "nobody"
CANCELS: Final = 0.04


class Producer:
    """Sends jobs at a pace; every request has an id or a key of its own, and is repeatable."""

    def __init__(
        self, places: Places, edge: Edge, log: PromiseLog, *, seed: int, mood: Mood, pace_s: float
    ) -> None:
        self._places = places
        self._edge = edge
        self._log = log
        self._dice = random.Random(f"{seed}:{log.client}")
        self._mood = mood
        self._pace_s = pace_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._app = _orchestrator(places)
        self._broker = broker_at(places.broker_url)
        #: Job ids it knows of, for cancels and readers.
        self.known: list[str] = []

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send no more; may be repeated."""
        self._stopping.set()
        self._thread.join(timeout_s)
        self._app.close()
        assert not self._thread.is_alive()
        self._edge.close()

    def _run(self) -> None:
        names, weights = list(KINDS), list(KINDS.values())
        while not self._stopping.wait(self._pace_s * self._dice.uniform(0.5, 1.5)):
            kind = self._dice.choices(names, weights=weights)[0]
            getattr(self, f"_{kind}")()
            if self.known and self._mood.wild and self._dice.random() < CANCELS:
                self._cancel(self._dice.choice(self.known[-40:]))

    def _id(self) -> str:
        return str(uuid.UUID(int=self._dice.getrandbits(128), version=4))

    def _send(self, name: str = "echo", *, what: dict[str, Any], **options: Any) -> None:
        task_id = self._id()
        told = {"type": name, "tag": task_id} | what
        with self._log.call("send", job=task_id, what=told) as pending:
            try:
                self._app.send_task(
                    name, kwargs={"tag": task_id}, queue=self._places.queue, task_id=task_id,
                    retry=True, retry_policy={"max_retries": 2, "interval_start": 0.1},
                    **options,
                )  # fmt: skip
            except (OperationalError, *AWAY):
                return
            pending.told(200)
        self.known.append(task_id)

    def _plain(self) -> None:
        self._send(what={})

    def _gpu(self) -> None:
        self._send("gpu", what={})

    def _link(self) -> None:
        link = self._app.signature(LINK, queue=self._places.links)
        self._send(what={"link": LINK}, link=link)

    def _eta(self) -> None:
        eta = time.time() + self._dice.uniform(1, 5)
        self._send(what={"eta": eta}, eta=datetime.fromtimestamp(eta, UTC))

    def _expires(self) -> None:
        until = time.time() + self._dice.uniform(2, 4)
        moment = datetime.fromtimestamp(until, UTC)
        self._send(NOBODY, what={"expires": until}, expires=moment)

    def _http(self) -> None:
        key = self._id()
        body = {"type": "echo", "payload": {"tag": key}, "idempotencyKey": key}

        def send() -> Answer | None:
            return self._edge.call(
                "create", "/jobs", body | {"queue": self._places.queue}, what={"tag": key},
                pick=lambda found: {"id": found["id"]},
            )  # fmt: skip

        answer = insist(send, self._stopping)
        if answer is not None and answer.ok:
            self.known.append(answer.body["id"])

    def _chain(self) -> None:
        """Send a task with a next one; that goes out when it has succeeded, and not before."""
        task_id = self._id()
        mine = {"queue": self._places.queue, "task_id": task_id}
        first = self._app.signature("echo", kwargs={"tag": task_id}, options=mine)
        following = self._app.signature(LINK, queue=self._places.links)
        what = {"tag": task_id, "link": LINK, "type": "echo"}
        with self._log.call("send", job=task_id, what=what) as pending:
            try:
                chain(first, following).apply_async()
            except (OperationalError, *AWAY):
                return
            pending.told(200)
        self.known.append(task_id)

    def _twice(self) -> None:
        """Deliver one message two times, as a broker may."""
        task_id = self._id()
        body = json.dumps([[], {"tag": task_id}, {}]).encode()
        raw = Raw(task_id=task_id, body=body, tag=self._id())
        for _ in range(2):
            self._push("send", raw, kind="twice")

    def _poison(self) -> None:
        kind = self._dice.choice(("body", "pickle", "shape"))
        raw = Raw(
            task_id=self._id(),
            body=b"{not json" if kind == "body" else b"[1]",
            content_type="application/x-python-serialize" if kind == "pickle" else JSON,
            tag=self._id(),
        )
        self._push("poison", raw, kind=kind)

    def _nameless(self) -> None:
        self._push("poison", Raw(task_id=None, body=b"", tag=self._id()), kind="nameless")

    def _push(self, op: str, raw: Raw, *, kind: str) -> None:
        with self._log.call(op, job=raw.task_id, what={"kind": kind}) as pending:
            try:
                self._broker.push(self._places.queue, raw)
            except AWAY:
                return
            pending.told(200)

    def _cancel(self, job_id: str) -> None:
        self._edge.call(
            "cancel", f"/jobs/{job_id}/cancel", {}, job=job_id, what={},
            pick=lambda found: {"status": found["status"]},
        )  # fmt: skip


def _orchestrator(places: Places) -> Celery:
    """Make an ordinary app, which waits for no broker for long."""
    app = Celery(broker=places.broker_url, backend=places.backend_url, set_as_current=False)
    options: dict[str, Any] = {"socket_timeout": 3.0, "socket_connect_timeout": 3.0}
    if places.broker_url.startswith("amqp"):
        options = {"confirm_publish": True, "read_timeout": 3.0, "write_timeout": 3.0}
        app.conf.task_queues = [
            Queue(name, Exchange(name), routing_key=name, no_declare=True)
            for name in (places.queue, places.links)
        ]
    app.conf.broker_transport_options = options
    return app


class Reader:
    """Follows the logs of some jobs with a cursor, one after the other."""

    def __init__(self, edge: Edge, producer: Producer, *, mood: Mood, seed: int) -> None:
        self._edge = edge
        self._producer = producer
        self._mood = mood
        self._dice = random.Random(f"{seed}:reader")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._cursors: dict[str, int] = {}

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
        self._edge.close()

    def _run(self) -> None:
        while not self._mood.stopping.wait(0.15):
            recent = self._producer.known[-20:]
            if recent:
                self._follow(self._dice.choice(recent))

    def _follow(self, job_id: str) -> None:
        """Read what came since the last time; an answer that got lost is asked for again."""
        after = self._cursors.get(job_id, 0)
        answer = self._edge.call(
            "read_events", f"/jobs/{job_id}/events?after={after}&limit=3", job=job_id,
            what={"after": after}, pick=lambda found: {"seqs": [e["seq"] for e in found["items"]]},
        )  # fmt: skip
        if answer is not None and answer.ok and answer.body["items"]:
            self._cursors[job_id] = answer.body["items"][-1]["seq"]
