"""What becomes of Celery's revoke: a broadcast nobody keeps, made a promise of the ledger.

A job that waits is cancelled; one that runs is stopped when the revoke terminates, and has no
further attempt when it does not, as with an ordinary worker. Ids and stamps that nobody knows yet
are remembered for a day, and their tasks are cancelled when they come.

What was heard is written to Redis before it is carried out, and forgotten after: a bridge that died
in between left it for whichever starts next.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import redis

from broker.catalog import Catalog
from broker.errors import JobStateConflict
from broker.ledger import stamps
from broker.ledger.intake import job_id_of
from broker.ledger.stamps import Stamp
from broker.payload import usable_name
from broker.queue import JobQueue
from broker.records import Ingested, Json

logger = logging.getLogger(__name__)

#: revoked ids that no job had, by when they were revoked, epoch s
REVOKED_TASKS: Final = "{db:}:revoked-tasks"
#: revoked stamps, each as json of header and value, by when they were revoked, epoch s
REVOKED_STAMPS: Final = "{db:}:revoked-stamps"
#: revokes heard and not yet carried out, json by a random name
HEARD: Final = "{db:}:revokes-heard"
KEEP_S: Final = 24 * 3600
#: revokes waiting for a ledger that is away
WAITING_MAX: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """What one message asks for."""

    ids: tuple[str, ...] = ()
    stamps: tuple[Stamp, ...] = ()
    #: stop those that run
    terminate: bool = False

    @classmethod
    def read(cls, method: str, arguments: Mapping[str, Any]) -> Self:
        """Read a remote control message: revoke, terminate or revoke_by_stamped_headers.

        Raises:
            TypeError, ValueError: it makes no sense.
        """
        terminate = method == "terminate" or bool(arguments.get("terminate"))
        if method != "revoke_by_stamped_headers":
            return cls(ids=_usable(_listed(arguments.get("task_id"))), terminate=terminate)
        headers = arguments.get("headers")
        if isinstance(headers, list):  # as the command line gives them
            headers = dict(str(one).split("=", 1) for one in headers)
        if not isinstance(headers, dict):
            raise TypeError("headers are no object")
        pairs = [(str(name), one) for name, some in headers.items() for one in _listed(some)]
        return cls(stamps=tuple(pairs), terminate=terminate)

    @classmethod
    def loads(cls, text: str) -> Self:
        """Read what ``dumps`` wrote."""
        said = json.loads(text)
        pairs = tuple((name, value) for name, value in said["stamps"])
        return cls(ids=_usable(said["ids"]), stamps=pairs, terminate=said["terminate"])

    def dumps(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))


class Revokes:
    """Revokes heard and not yet carried out; threads may share one."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._catalog = Catalog(queue.ledger)
        self._heard: deque[tuple[str, Revoke]] = deque(maxlen=WAITING_MAX)
        self._lock = threading.Lock()
        self._looked_back = False

    @property
    def _client(self) -> Any:
        return self._queue.reservations.client

    def hear(self, revoke: Revoke) -> None:
        """Keep what was revoked; ``step`` carries it out."""
        name = uuid.uuid4().hex
        try:
            # first: were it carried out before it is written, it would be carried out for ever
            self._client.hset(HEARD, name, revoke.dumps())
        except redis.RedisError as error:
            logger.warning("a revoke is kept in memory alone: %s", error)
        self._heard.append((name, revoke))

    def step(self) -> int:
        """Carry out what was heard, by this bridge or one that died; returns how many messages.

        Raises:
            Unavailable: a store is away; what is left is tried again.
        """
        done = 0
        with self._lock:
            if not self._looked_back:
                self._look_back()
            while self._heard:
                name, revoke = self._heard[0]
                self._carry_out(revoke)
                self._client.hdel(HEARD, name)
                self._heard.popleft()
                done += 1
        return done

    def apply(self, ingested: Sequence[Ingested]) -> None:
        """Cancel those jobs whose tasks were revoked before they came.

        Also of messages that came again: their bridge may have died before it looked.
        """
        some = {job_id_of(one.task_id): one.task_id for one in ingested}
        if not some:
            return
        since = time.time() - KEEP_S
        try:
            pipe = self._client.pipeline(transaction=False)
            pipe.zmscore(REVOKED_TASKS, list(some.values()))
            pipe.zrangebyscore(REVOKED_STAMPS, since, "+inf")
            marks, pairs = pipe.execute()
        except redis.RedisError as error:
            logger.warning("revoked ids are unknown: %s", error, extra={"action": "revoke"})
            return
        revoked = {
            job_id for job_id, mark in zip(some, marks, strict=True) if mark and mark > since
        }
        if pairs:
            wanted = [tuple(json.loads(pair)) for pair in pairs]
            with self._queue.ledger.read() as conn:
                found = stamps.of(conn, list(some))
            revoked |= {id_ for id_, canvas in found.items() if stamps.matches(canvas, wanted)}
        for job_id in revoked:
            self._cancel(job_id, stop=False)

    def _look_back(self) -> None:
        known = {name for name, _ in self._heard}
        for name, text in self._client.hgetall(HEARD).items():
            if name not in known:
                self._heard.append((name, Revoke.loads(text)))
        self._looked_back = True

    def _carry_out(self, revoke: Revoke) -> None:
        """First note what may still come, then look for what is here: a task may come between."""
        now = time.time()
        unknown = [one for one in revoke.ids if self._catalog.find(one) is None]
        for key, members in (
            (REVOKED_TASKS, unknown),
            (REVOKED_STAMPS, [json.dumps(pair) for pair in revoke.stamps]),
        ):
            if members:
                self._client.zadd(key, dict.fromkeys(members, now))
                self._client.zremrangebyscore(key, "-inf", now - KEEP_S)
        for task_id in revoke.ids:
            job = self._catalog.find(task_id)
            if job is not None:
                self._cancel(job.id, stop=revoke.terminate)
        after = 0
        while revoke.stamps:
            with self._queue.ledger.read() as conn:
                found, after = stamps.stamped(conn, revoke.stamps, after=after)
            for job_id in found:
                self._cancel(job_id, stop=revoke.terminate)
            if not after:
                return

    def _cancel(self, job_id: str, *, stop: bool) -> None:
        try:
            self._queue.cancel(job_id, reason="revoked", requested_by="celery", stop=stop)
        except JobStateConflict:
            return  # it has ended; a revoke never undoes that
        logger.info("revoked job %s", job_id, extra={"action": "revoke", "job_id": job_id})


def _usable(ids: Sequence[Json]) -> tuple[str, ...]:
    """Leave out what no task is ever called: a name that no store takes would stay ahead of all."""
    return tuple(one for one in map(str, ids) if usable_name(one))


def _listed(value: Json) -> list[Json]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
