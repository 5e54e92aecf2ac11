"""From headers to a Principal: the only one to know who calls, and who may call what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final

from flask import Request, current_app, g, request

from broker.errors import AuthFailed, LedgerUnavailable, NotAuthorized
from broker.policy import Policy
from broker.records import Job
from edge_api.errors import Unauthorized
from edge_api.services import current_services


class Kind(StrEnum):
    """What kind of credential calls."""

    WORKER = "worker"
    OPERATOR = "operator"
    PRODUCER = "producer"


#: who makes, watches and cancels jobs
USERS: Final = (Kind.OPERATOR, Kind.PRODUCER)
ONLY_WORKERS: Final = frozenset({Kind.WORKER})
#: attribute of a view's method: the kinds that may call it, or empty for everybody
ALLOWED: Final = "allowed_kinds"

#: the one endpoint for which a credential counts that only our memory vouches for (decision 23)
HEARTBEAT: Final = "leases.heartbeat"
#: in order of precedence; the last is of daemons in the field
WORKER_HEADERS: Final = ("X-Worker-Token", "X-MoonMind-Worker-Token")
#: any of these means that somebody else than the peer is asking
FORWARDED_HEADERS: Final = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
)

SECURITY_SCHEMES: Final = MappingProxyType(
    {
        "operator": {"type": "http", "scheme": "bearer"},
        "producer": {"type": "http", "scheme": "bearer"},
        "worker": {"type": "http", "scheme": "bearer"},
        "workerHeader": {"type": "apiKey", "in": "header", "name": WORKER_HEADERS[0]},
        "fieldWorkerHeader": {"type": "apiKey", "in": "header", "name": WORKER_HEADERS[1]},
    }
)
SCHEMES: Final = MappingProxyType(
    {
        Kind.OPERATOR: ("operator",),
        Kind.PRODUCER: ("producer",),
        Kind.WORKER: ("worker", "workerHeader", "fieldWorkerHeader"),
    }
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, proven."""

    kind: Kind
    #: id of the credential, safe to log; "local" when none was needed
    id: str
    worker_id: str | None = None
    policy: Policy = Policy()  # noqa: RUF009  frozen

    @property
    def worker(self) -> str:
        """The worker's name, on routes for workers."""
        if self.worker_id is None:
            raise NotAuthorized
        return self.worker_id

    def holds(self, job: Job) -> bool:
        """Tell whether a worker holds a job."""
        return job.lease_id is not None and job.claimed_by == self.worker_id


#: whoever calls from this machine when AUTH_PROVIDER=disabled
LOCAL: Final = Principal(Kind.OPERATOR, "local")


def principal() -> Principal:
    """Return who makes this request."""
    caller: Principal = g.principal
    return caller


def check_worker_id(claimed: object) -> None:
    """Refuse a worker that signs as another one; who is no worker says nothing by it.

    Raises:
        NotAuthorized: the credential's worker has another name.
    """
    caller = principal()
    if (
        caller.kind is Kind.WORKER
        and isinstance(claimed, str)
        and claimed
        and claimed != caller.worker_id
    ):
        raise NotAuthorized("workerId is not the name of this token's worker")


def guard() -> None:
    """Let a request in or refuse it, before its body is read and before its route is known bad.

    Raises:
        AuthFailed: no credential that is good.
        NotAuthorized: a good one that may not do this.
    """
    g.principal = None
    view = _view()
    allowed: frozenset[Kind] | None = getattr(view, ALLOWED, None)
    if allowed is not None and not allowed:
        return
    try:
        g.principal = caller = _authenticate(request)
    except AuthFailed:
        if allowed == ONLY_WORKERS:
            raise
        raise Unauthorized from None
    if caller.worker_id is not None:
        current_services().presence.seen(caller.worker_id)
    if request.routing_exception is not None:
        return  # Flask raises it next, to whoever may know
    if allowed is None or caller.kind not in allowed:
        raise NotAuthorized


def _view() -> Any:
    """Return the method that will serve the request, if its route is known."""
    if request.endpoint is None:
        return None
    view = current_app.view_functions[request.endpoint]
    method = "get" if request.method == "HEAD" else request.method.lower()
    return getattr(getattr(view, "view_class", view), method, view)


def _authenticate(request: Request) -> Principal:
    services = current_services()
    worker_token = _worker_token(request)
    text = _bearer(request) if worker_token is None else worker_token
    if text is None:
        if services.settings.auth_disabled and _is_local(request):
            return LOCAL
        raise AuthFailed
    credential = services.credentials.verify(text, now=services.clock.now())
    kind = Kind(credential.kind)
    if worker_token is not None and kind is not Kind.WORKER:
        raise AuthFailed
    if credential.stale and request.endpoint != HEARTBEAT:
        raise LedgerUnavailable
    return Principal(kind, credential.id, credential.worker_id, credential.policy)


def _worker_token(request: Request) -> str | None:
    for name in WORKER_HEADERS:
        if name in request.headers:
            return request.headers[name]
    return None


def _bearer(request: Request) -> str | None:
    if "Authorization" not in request.headers:
        return None
    scheme, _, token = request.headers["Authorization"].partition(" ")
    if scheme != "Bearer":
        raise AuthFailed
    return token


def _is_local(request: Request) -> bool:
    # A proxy on this machine makes the whole world look local.
    if any(name in request.headers for name in FORWARDED_HEADERS):
        return False
    try:
        return ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        return False
