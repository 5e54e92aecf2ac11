"""From headers to a Principal: the only one to know who calls, and who may call what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from flask import Request, current_app, g, request

from broker.errors import AuthFailed, LedgerUnavailable, NotAuthorized
from broker.issuers import Unmapped, is_jwt
from broker.policy import Policy
from broker.records import Job
from edge_api.errors import Unauthorized
from edge_api.presence import LOAD
from edge_api.services import Services, current_services
from edge_api.source import Address, allowed, peer_is_loopback, source_of


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
#: the paths that serve whoever asks, and so hide nothing
OPEN: Final = ("/healthz", "/readyz")
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
        "worker": {
            "type": "http",
            "scheme": "bearer",
            "description": "a token of ours, or a JWT that a rule maps to a worker",
        },
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


def source() -> str | None:
    """Return the address that makes this request, as the audit writes it."""
    found: Address | None = g.source
    return None if found is None else str(found)


def guard() -> None:
    """Let a request in or refuse it, before its body is read and before its route is known bad.

    Raises:
        AuthFailed: no credential that is good.
        NotAuthorized: a good one that may not do this.
        RateLimited: too many calls of this worker, or refusals of this address.
    """
    g.principal = None
    view = _view()
    allowed_kinds: frozenset[Kind] | None = getattr(view, ALLOWED, None)
    if _hides_nothing(allowed_kinds):
        return
    services = current_services()
    g.source = source_of(request, services.settings.trusted_proxies)
    try:
        g.principal = caller = _authenticate(services)
    except AuthFailed as error:
        _refused(error.why, error.credential)
        if error.why != "missing":
            # Only now: who has a good credential is not counted with strangers on its address.
            services.rates.failed(g.source)
        if allowed_kinds == ONLY_WORKERS:
            raise
        raise Unauthorized from None
    except Unmapped as error:
        _refused("unmapped", error.who)
        raise
    except OutOfRange as error:
        _refused("address", error.credential)
        raise
    if caller.worker_id is not None:
        services.rates.called(caller.worker_id, request.endpoint)
        services.presence.seen(caller.worker_id, request.headers.get(LOAD))
    if request.routing_exception is not None:
        return  # Flask raises it next, to whoever may know
    if allowed_kinds is None or caller.kind not in allowed_kinds:
        _refused("kind", caller.id)
        raise NotAuthorized


def proof() -> Callable[[], Principal]:
    """Return what proves this request's credential once more, for calls that wait.

    It raises as ``guard`` does once the credential is revoked, expired or out of its range.
    """
    services, presented, address = current_services(), _presented(request), g.source
    if presented is None:
        raise AuthFailed(why="missing")
    return lambda: _prove(services, presented, address, again=True)


class OutOfRange(NotAuthorized):
    """This credential may not be used from this address."""

    def __init__(self, credential: str) -> None:
        super().__init__()
        self.credential = credential


@dataclass(frozen=True, slots=True)
class _Presented:
    """What a request shows of itself."""

    text: str = field(repr=False)
    #: it came in a header that only workers use
    workers_only: bool


def _hides_nothing(allowed_kinds: frozenset[Kind] | None) -> bool:
    if allowed_kinds is not None:
        return not allowed_kinds
    # by a method that nobody offers: Flask says so next
    return request.endpoint is None and request.path in OPEN


def _view() -> Any:
    """Return the method that will serve the request, if its route is known."""
    if request.endpoint is None:
        return None
    view = current_app.view_functions[request.endpoint]
    method = "get" if request.method == "HEAD" else request.method.lower()
    return getattr(getattr(view, "view_class", view), method, view)


def _authenticate(services: Services) -> Principal:
    presented = _presented(request)
    if presented is None:
        if services.settings.auth_disabled and _is_local(request):
            return LOCAL
        raise AuthFailed(why="missing")
    return _prove(services, presented, g.source)


def _prove(
    services: Services, presented: _Presented, address: Address | None, *, again: bool = False
) -> Principal:
    now = services.clock.now()
    if services.oidc is not None and is_jwt(presented.text) and not presented.workers_only:
        jwt = services.oidc.prove(presented.text, now=now)
        caller = Principal(Kind(jwt.kind), jwt.id, jwt.worker_id, jwt.policy)
    else:
        credential = services.credentials.verify(presented.text, now=now, again=again)
        kind = Kind(credential.kind)
        if presented.workers_only and kind is not Kind.WORKER:
            raise AuthFailed(why="kind", credential=credential.id)
        if credential.stale and request.endpoint != HEARTBEAT:
            raise LedgerUnavailable
        caller = Principal(kind, credential.id, credential.worker_id, credential.policy)
    if not allowed(address, caller.policy.ip_ranges):
        raise OutOfRange(caller.id)
    return caller


def _refused(why: str, credential: str | None) -> None:
    """Leave a trace of a refused credential; none at all is nothing to be told of."""
    if why == "missing":
        return
    services = current_services()
    services.refusals.note(
        why,
        credential=credential,
        source=source(),
        route=str(request.url_rule or "-"),
        now=services.clock.now(),
    )


def _presented(request: Request) -> _Presented | None:
    for name in WORKER_HEADERS:
        if name in request.headers:
            return _Presented(request.headers[name], workers_only=True)
    if "Authorization" not in request.headers:
        return None
    scheme, _, token = request.headers["Authorization"].partition(" ")
    if scheme != "Bearer":
        raise AuthFailed(why="scheme")
    return _Presented(token, workers_only=False)


def _is_local(request: Request) -> bool:
    # A proxy on this machine makes the whole world look local.
    if any(name in request.headers for name in FORWARDED_HEADERS):
        return False
    return peer_is_loopback(request)
