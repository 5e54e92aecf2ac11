"""When a job is offered again: bounded exponential delays that replay alike."""

from __future__ import annotations

from random import Random
from typing import Final

#: first delay after a retryable failure, doubled with each attempt
RETRY_BASE_S: Final = 15.0
#: no retry waits longer than this before jitter
RETRY_CAP_S: Final = 600.0
#: delay after a lost lease
LEASE_LOST_S: Final = 30.0
#: jitter multiplies by a factor from this range
JITTER: Final = (0.75, 1.25)


def retry_delay_s(job_id: str, attempt: int) -> float:
    """Return the seconds to wait after failed attempt ``attempt`` (from 1).

    ``min(600, 15 * 2**(attempt - 1)) * U(0.75, 1.25)``, design §6; the jitter is seeded by job and
    attempt, so that a replay gives the same moment.
    """
    exponent = min(attempt - 1, 32)
    return min(RETRY_CAP_S, RETRY_BASE_S * 2.0**exponent) * _jitter(job_id, attempt)


def lease_lost_delay_s(job_id: str, attempt: int) -> float:
    """Return the seconds to wait after attempt ``attempt`` lost its lease: 30 s with jitter."""
    return LEASE_LOST_S * _jitter(job_id, attempt)


def _jitter(job_id: str, attempt: int) -> float:
    return Random(f"{job_id}:{attempt}").uniform(*JITTER)  # noqa: S311  spread, not secrecy
