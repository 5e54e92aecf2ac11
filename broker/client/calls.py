"""How an edge is asked: again where that may help, for every call of ours may come twice."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import tenacity
from requests.auth import AuthBase

from broker.client.errors import EdgeAway, EdgeRefused

PREFIX: Final = "/api/queue"
#: names of the machine itself
HERE: Final = frozenset({"127.0.0.1", "::1", "localhost"})
#: connecting, and silence of an edge that was not asked to wait
_TIMEOUT_S: Final = (5.0, 30.0)
_TRIES: Final = 6
_BUSY: Final = frozenset({429, 503})

Sleep = Callable[[float], None]


class _Again(Exception):
    """Worth another try, after the seconds the edge asked for."""

    def __init__(self, cause: EdgeRefused | EdgeAway, after_s: float) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.after_s = after_s


class _Token(AuthBase):
    """The credential; as an auth object, so that no .netrc replaces it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Calls:
    """One edge and a credential; for one thread at a time."""

    def __init__(self, url: str, token: str, *, sleep: Sleep = time.sleep) -> None:
        """Take the edge's address and a token; asks nothing yet."""
        self._base = url.rstrip("/").removesuffix(PREFIX) + PREFIX
        self._sleep = sleep
        self._http = requests.Session()
        self._http.auth = _Token(token)
        # no proxy leads to this machine itself; over https the environment may name authorities
        address = urlsplit(self._base)
        self._http.trust_env = address.scheme != "http" or address.hostname not in HERE

    def close(self) -> None:
        """Let go of the connections; may be repeated."""
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask, and read the answer; what is no JSON is no edge's."""
        with self.sent(method, path, params=params, json=body) as answer:
            try:
                return answer.json()
            except requests.RequestException:
                raise EdgeAway(f"{self._base} answers something that is no edge's") from None

    def sent(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send until there is an answer; every call of ours may come twice."""
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=_pause,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return tries(self._once, method, path, **more)
        except _Again as again:
            raise again.cause from None

    def _once(self, method: str, path: str, **more: Any) -> requests.Response:
        connect_s, read_s = _TIMEOUT_S
        wait_s = (more.get("params") or {}).get("waitSeconds", 0)
        try:
            answer = self._http.request(
                method,
                self._base + path,
                timeout=(connect_s, read_s + wait_s),
                allow_redirects=False,
                **more,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            cause = _cause(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                # it is no better the second time
                raise EdgeAway(
                    f"{self._base} cannot be trusted: {cause.verify_message}; REQUESTS_CA_BUNDLE "
                    "names the file of an authority of your own"
                ) from None
            said = cause.strerror if isinstance(cause, OSError) else None
            away = EdgeAway(f"{self._base} does not answer: {said or type(cause).__name__}")
            raise _Again(away, 0.0) from None
        except requests.RequestException as error:
            raise EdgeAway(f"{self._base} cannot be asked: {error}") from None
        if answer.ok and not answer.is_redirect:
            return answer
        with answer:
            refused = _refusal(answer)
        if answer.status_code in _BUSY:
            raise _Again(refused, _retry_after(answer))
        raise refused


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong at the bottom, without the layers that passed it on."""
    passed_on = getattr(error.args[0] if error.args else None, "reason", None)
    for deeper in (passed_on, error.__cause__, *error.args[:1]):
        if isinstance(deeper, BaseException):
            return _cause(deeper)
    return error


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, _Again) else 0.0
    return max(asked, tenacity.wait_random_exponential(multiplier=0.2, max=5.0)(state))


def _retry_after(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), 60.0) if text.isascii() and text.isdigit() else 0.0


def _refusal(answer: requests.Response) -> EdgeRefused | EdgeAway:
    """Read why the edge said no; a page of something else is no edge's word."""
    try:
        detail = answer.json()["detail"]
        return EdgeRefused(answer.status_code, str(detail["code"]), str(detail["message"]))
    except (requests.RequestException, LookupError, TypeError):
        return EdgeAway(f"{answer.url} answers {answer.status_code}, and not as an edge does")
