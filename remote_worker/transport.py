"""One request and its answer: the only one to know `requests`, and what counts as an answer.

An answer counts only when it is the edge's own: JSON of the contract's shape. A proxy's page, with
whatever status, is no answer at all, and a redirect is never followed: the token would go along.
"""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn, Protocol

import requests

from remote_worker.artifacts import MultipartBody
from remote_worker.clock import Clock, steady
from remote_worker.deadline import Adapter, within
from remote_worker.errors import Refused, Unanswered

#: A job with the largest payload there is, each of its letters spelled out, is less than this.
MAX_ANSWER = 4 * 1024 * 1024
CONNECT_S = 5.0
ANSWER_S = 15.0
#: this machine's load averages, of 1, 5 and 15 minutes
LOAD = "Bridge-Load"
#: how far the orders to this worker have got, by any answer of the edge
CURSOR = "Bridge-Control-Cursor"
_MAX_RETRY_AFTER_S = 600.0
#: a file that goes up more slowly than this goes up again
_SLOWEST_BYTES_PER_S = 32 * 1024
_AGAIN = frozenset({408, 425, 429})
_UNAUTHORIZED = 401
_SERVER_ERROR = 500


class Token(Protocol):
    """What an edge is shown."""

    @property
    def current(self) -> str:
        """Return the token to use."""

    def replaced(self, refused: str) -> bool:
        """Say whether there is another than the one that was refused."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What is asked, and how long and large an answer may be."""

    method: str
    url: str
    data: bytes | MultipartBody | None
    headers: Mapping[str, str]
    connect_s: float
    read_s: float
    most_bytes: int

    @property
    def longest_s(self) -> float:
        """Return how long it may take from its beginning to the end of its answer."""
        size = 0 if self.data is None else len(self.data)
        return self.connect_s + self.read_s + size / _SLOWEST_BYTES_PER_S


class Session(requests.Session):
    """One that follows no redirect and does not even look at where it leads.

    To tell the next address requests would read the whole body, whatever its size, and fail on an
    address that is none.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none."""


class Transport:
    """Asks one edge with one token; may be used by any number of threads."""

    def __init__(
        self,
        *,
        token: Token,
        version: str,
        proxy: str | None = None,
        ca_file: Path | None = None,
        clock: Clock = steady,
    ) -> None:
        self._token = token
        self._proxy = proxy
        self._ca_file = ca_file
        self._version = version
        self._clock = clock
        # A session is one thread's: requests does not promise more.
        self._local = threading.local()
        #: told what an answer says of how far the orders to this worker have got
        self.on_cursor: Callable[[int], None] = lambda _cursor: None

    def ask(
        self,
        method: str,
        url: str,
        *,
        data: bytes | MultipartBody | None = None,
        headers: Mapping[str, str] | None = None,
        connect_s: float = CONNECT_S,
        read_s: float = ANSWER_S,
        most_bytes: int = MAX_ANSWER,
    ) -> Mapping[str, object]:
        """Ask once and return the edge's JSON object; once more where the token was replaced."""
        call = _Call(method, url, data, headers or {}, connect_s, read_s, most_bytes)
        token = self._token.current
        try:
            return self._ask(call, token)
        except Refused as no:
            if no.status != _UNAUTHORIZED or not self._token.replaced(token):
                raise
            if isinstance(data, MultipartBody):
                raise Unanswered("the token was replaced while a file was on its way") from no
            return self._ask(call, self._token.current)

    def _ask(self, call: "_Call", token: str) -> Mapping[str, object]:
        """Ask with one token."""
        what = f"{call.method} {call.url}"
        with within(call.longest_s) as line:
            try:
                with self._session().request(
                    call.method,
                    call.url,
                    data=call.data,
                    headers={"Authorization": f"Bearer {token}", **_load(), **call.headers},
                    timeout=(call.connect_s, call.read_s),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    until = self._clock() + call.read_s
                    body = self._read(response, until=until, most=call.most_bytes)
            except requests.RequestException as error:
                why = "no whole answer in time" if line.cut else type(error).__name__
                raise Unanswered(f"{what}: {why}") from error
            if line.cut:
                # An answer without a length ends where its line does.
                raise Unanswered(f"{what}: no whole answer in time")
        answer = _understand(response, body)
        cursor = response.headers.get(CURSOR, "")
        if cursor.isascii() and cursor.isdecimal():
            self.on_cursor(int(cursor[:18]))
        return answer

    def _read(self, response: requests.Response, *, until: float, most: int) -> bytes:
        """Read an answer that may be a drip or a flood."""
        body = bytearray()
        for chunk in response.iter_content(65536):
            body += chunk
            if len(body) > most:
                raise Unanswered(f"an answer of more than {most} bytes")
            if self._clock() > until:
                raise Unanswered("the answer did not end in time")
        return bytes(body)

    def _session(self) -> requests.Session:
        """Return this thread's session: no .netrc, no environment, nothing but what we set."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = Session()
            for scheme in ("http://", "https://"):
                session.mount(scheme, Adapter())
            session.trust_env = False
            if self._proxy is not None:
                session.proxies = {"http": self._proxy, "https": self._proxy}
            if self._ca_file is not None:
                session.verify = str(self._ca_file)
            session.headers.update(
                {
                    "Accept": "application/json",
                    "User-Agent": f"drawbridge-worker/{self._version}",
                }
            )
            self._local.session = session
        return session


def _load() -> Mapping[str, str]:
    """Return the header that says how busy this machine is; none where that is not known."""
    try:
        return {LOAD: ",".join(f"{one:.2f}" for one in os.getloadavg())}
    except (AttributeError, OSError):
        return {}


def _understand(response: requests.Response, body: bytes) -> Mapping[str, object]:
    """Tell the edge's yes from its no, and both from everything else on the way."""
    status, after = response.status_code, _retry_after(response.headers.get("Retry-After"))
    if status in _AGAIN or status >= _SERVER_ERROR:
        raise Unanswered(f"the edge answered {status}", retry_after_s=after)
    try:
        answer = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Unanswered(f"status {status} with a body that is no JSON") from None
    if not isinstance(answer, dict):
        raise Unanswered(f"status {status} with a body that is no object")
    if response.ok and status < requests.codes.multiple_choices:
        return answer
    detail = answer.get("detail")
    if not isinstance(detail, dict) or not isinstance(detail.get("code"), str):
        raise Unanswered(f"status {status}, but not from the edge: {response.reason}")
    message = detail.get("message")
    raise Refused(
        status=status,
        code=detail["code"],
        message=message[:500] if isinstance(message, str) else "",
    )


def _no_number(name: str) -> NoReturn:
    """Refuse NaN and its relatives."""
    raise ValueError(name)


def _retry_after(value: str | None) -> float:
    """Return the seconds a Retry-After asks for, 0 when it asks for nothing sensible."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    # NaN is less than nothing, and more than nothing neither.
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)
