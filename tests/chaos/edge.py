"""How a client of the suite speaks to the edge: each call is logged before and after."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import requests

from tests.chaos.promises import NOT_NOW, PromiseLog

PREFIX: Final = "/api/queue"
PAUSE_S: Final = 0.1
#: So long a client tries again before it gives a call up.
PATIENCE_S: Final = 45.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a JSON body."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        """Whether it was accepted."""
        return 200 <= self.status < 300

    @property
    def settled(self) -> bool:
        """Whether asking again would change nothing."""
        return self.status < 500 and self.status != NOT_NOW


#: What is kept of an accepted answer, for the oracle.
Pick = Callable[[Any], Mapping[str, Any]]


class Edge:
    """One client's way to the edge; its calls are never repeated unasked."""

    def __init__(self, url: str, token: str, log: PromiseLog) -> None:
        self._url = url + PREFIX
        self._log = log
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"

    def call(
        self,
        op: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        job: str | None = None,
        lease: str | None = None,
        what: Mapping[str, Any],
        pick: Pick = lambda _: {},
        **more: Any,
    ) -> Answer | None:
        """Call once; None when nobody knows what became of it."""
        method = "GET" if body is None and not more.get("files") else "POST"
        with self._log.call(op, job=job, lease=lease, what=what) as pending:
            try:
                response = self._session.request(
                    method, self._url + path, json=body, timeout=(3, 15), **more
                )
                found = response.json()
            except (requests.RequestException, ValueError):
                return None
            answer = Answer(response.status_code, found)
            when = {"retry_after": response.headers.get("Retry-After")}
            pending.told(answer.status, pick(found) if answer.ok else when)
            return answer

    def close(self) -> None:
        """Close its connections."""
        self._session.close()


def insist(
    send: Callable[[], Answer | None], stopping: threading.Event, *, patience_s: float = PATIENCE_S
) -> Answer | None:
    """Repeat a call, as a worker does, until it is settled."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and not stopping.is_set():
        answer = send()
        if answer is not None and answer.settled:
            return answer
        stopping.wait(PAUSE_S)
    return None
