"""What an edge counts of its own: calls, claims, wake-ups, refused credentials.

Routes are counted by their template, never by path: a job's id is no label. A method or a route
that does not exist is a dash, whatever a stranger made up.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

NONE: Final = "-"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNAUTHORIZED: Final = 401
#: from a heartbeat in Redis alone to a claim that waits its 50 s
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

SECONDS: Final = Histogram(
    "drawbridge_request_seconds", "How long calls took.", ["method", "route"], buckets=BUCKETS
)
REQUESTS: Final = Counter("drawbridge_requests", "Calls answered.", ["method", "route", "status"])
REFUSED: Final = Counter(
    "drawbridge_credentials_refused", "Calls without a good credential.", ["route"]
)
CLAIMS: Final = Counter("drawbridge_claims", "Claims answered.", ["outcome"])
CLAIMED: Final = Counter("drawbridge_jobs_claimed", "Jobs given to workers.")
WAITING: Final = Gauge(
    "drawbridge_waiting_calls", "Calls that wait just now.", multiprocess_mode="livesum"
)
WAKES: Final = Counter("drawbridge_wakes", "Wake-ups heard of.")
WOKEN: Final = Counter("drawbridge_waiters_woken", "Waiting claims woken.")


def answered(*, method: str, route: str | None, status: int, seconds: float) -> None:
    """Count a call."""
    method = method if method in METHODS else NONE
    route = route or NONE
    SECONDS.labels(method, route).observe(seconds)
    REQUESTS.labels(method, route, str(status)).inc()
    if status == UNAUTHORIZED:
        REFUSED.labels(route).inc()


def claimed(jobs: int) -> None:
    """Count a claim by what it got."""
    CLAIMS.labels("granted" if jobs else "empty").inc()
    CLAIMED.inc(jobs)


def crowded() -> None:
    """Count a claim that found no place to wait."""
    CLAIMS.labels("crowded").inc()
