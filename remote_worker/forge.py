"""The forge's REST API, as GitHub has it: the pull request of a branch, found or opened."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import requests
from requests.utils import should_bypass_proxies

from remote_worker.credentials import Credential
from remote_worker.errors import Misconfigured, WorkerError
from remote_worker.repository import Repository
from remote_worker.settings import Settings
from remote_worker.transport import Session

_TIMEOUT_S = (10.0, 30.0)
_MAX_ANSWER = 4 * 1024 * 1024
_MAX_URL = 1000
_TRIES = 3
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_NEW = 422


class ForgeFailed(WorkerError):
    """The forge said no, or nothing worth believing."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        #: None when no answer came: whether it was done nobody knows
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What to open."""

    branch: str
    base: str
    title: str
    body: str


class _Bearer(requests.auth.AuthBase):
    """Sends the token where it belongs; as `auth` no .netrc can put another in its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Forge:
    """One repository at its forge."""

    def __init__(
        self,
        settings: Settings,
        credential: Credential,
        repository: Repository,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._owner, _, _ = repository.path.partition("/")
        base = settings.forge_api or _api(repository.host)
        self._pulls = f"{base.rstrip('/')}/repos/{quote(repository.path)}/pulls"
        self._credential = credential
        self._passed = settings.pass_environment
        self._sleep = sleep

    def ensure(self, wanted: PullRequest, *, may_open: Callable[[], None]) -> str:
        """Return the address of the branch's pull request, opening one if there is none.

        Asks before it opens, and again when an answer was lost: a repeat finds its own. `may_open`
        raises when we must not open one any more.
        """
        for again in range(_TRIES):
            try:
                found = self._find(wanted)
                if found is not None:
                    return found
                may_open()
                return self._open(wanted)
            except ForgeFailed as error:
                lost = error.status is None or error.status in _AGAIN
                # "Not valid" is also what it says to the second of two.
                if again + 1 == _TRIES or not (lost or (error.status == _NOT_NEW and not again)):
                    raise
                self._sleep(2.0**again)
        raise AssertionError("unreachable")

    def _find(self, wanted: PullRequest) -> str | None:
        """Return the address of an open pull request of the branch."""
        query = {"head": f"{self._owner}:{wanted.branch}", "base": wanted.base, "state": "open"}
        answer = self._ask("GET", params=query)
        if not isinstance(answer, list):
            raise ForgeFailed("the forge's list of pull requests is none")
        # A forge that does not know `head` answers with all of them.
        mine = [one for one in answer if _head(one) == wanted.branch]
        return _address(mine[0]) if mine else None

    def _open(self, wanted: PullRequest) -> str:
        """Open it."""
        body = {
            "title": wanted.title,
            "head": wanted.branch,
            "base": wanted.base,
            "body": wanted.body,
        }
        return _address(self._ask("POST", body=body))

    def _ask(
        self,
        method: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, str] | None = None,
    ) -> object:
        """Ask once."""
        try:
            token = self._credential.token()
        except Misconfigured as error:
            raise ForgeFailed(str(error), status=0) from None
        try:
            with self._session() as session, session.request(
                method, self._pulls, params=params, json=body, auth=_Bearer(token),
                timeout=_TIMEOUT_S, allow_redirects=False, stream=True,
            ) as response:  # fmt: skip
                data = response.raw.read(_MAX_ANSWER, decode_content=True)
        except (requests.RequestException, OSError) as error:
            raise ForgeFailed(f"no answer of the forge: {type(error).__name__}") from error
        return _understand(response.status_code, data)

    def _session(self) -> requests.Session:
        """Return a session that goes out as the owner said, and reads nothing else of his."""
        session = Session()
        session.trust_env = False
        session.verify = self._passed.get("SSL_CERT_FILE") or True
        session.headers["Accept"] = "application/vnd.github+json"
        proxy = self._passed.get("HTTPS_PROXY") or self._passed.get("https_proxy")
        direct = self._passed.get("NO_PROXY") or self._passed.get("no_proxy")
        if proxy and not should_bypass_proxies(self._pulls, direct or ""):
            session.proxies["https"] = proxy
        return session


def _api(host: str) -> str:
    """Return where a host has its API: GitHub's own, or as GitHub Enterprise has it."""
    return "https://api.github.com" if host == "github.com" else f"https://{host}/api/v3"


def _understand(status: int, data: bytes) -> object:
    """Return the JSON of a yes; anything else raises."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise ForgeFailed(f"the forge answered {status} without JSON", status=status) from None
    if status not in (requests.codes.ok, requests.codes.created):
        said = answer.get("message") if isinstance(answer, dict) else None
        errors = answer.get("errors") if isinstance(answer, dict) else None
        text = f"the forge answered {status}: {str(said)[:300]}"
        raise ForgeFailed(f"{text} {json.dumps(errors)[:500]}" if errors else text, status=status)
    return answer


def _head(pull: object) -> object:
    """Return the branch a pull request is of."""
    head = pull.get("head") if isinstance(pull, dict) else None
    return head.get("ref") if isinstance(head, dict) else None


def _address(pull: object) -> str:
    """Return where people see a pull request."""
    url = pull.get("html_url") if isinstance(pull, dict) else None
    if not isinstance(url, str) or not url.startswith("https://") or len(url) > _MAX_URL:
        raise ForgeFailed("the forge's answer names no pull request", status=0)
    return url
