"""The only one to know which credentials make sense: owners, words and policies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Final

from broker import tokens
from broker.credential import Credential
from broker.errors import InvalidPayload
from broker.policy import Policy, repository_pattern

WORKER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_WORD_MAX: Final = 255
#: PostgreSQL refuses NUL, UTF-8 half of a pair
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def check_owner(kind: str, worker_id: str | None, policy: Policy | None) -> None:
    """Refuse a worker without a name, and a name or a policy on another kind.

    Raises:
        InvalidPayload: and why.
    """
    if kind not in tokens.KINDS.values():
        raise InvalidPayload("kind is worker, operator or producer")
    if kind == "worker":
        if worker_id is None or not WORKER_ID.fullmatch(worker_id):
            raise InvalidPayload("workerId must be 1-128 of letters, digits, dot, dash, underscore")
    elif worker_id is not None:
        raise InvalidPayload(f"a token of kind {kind} has no workerId")
    elif policy not in (None, Policy()):
        raise InvalidPayload(f"a token of kind {kind} has no policy")


def check_description(text: str | None) -> None:
    """Refuse what no database stores."""
    if text is not None and _UNSTORABLE.search(text):
        raise InvalidPayload("description holds what no database stores")


def check_expiry(expires_at: datetime | None, now: datetime) -> None:
    """Refuse what would never be good."""
    if expires_at is not None and expires_at <= now:
        raise InvalidPayload("expiresAt lies in the past")


def said(credential: Credential) -> dict[str, Any]:
    """Say in the audit what a new token is for."""
    until = credential.expires_at
    return {
        "kind": credential.kind,
        "workerId": credential.worker_id,
        "policy": stored(credential.policy),
        "expiresAt": None if until is None else until.isoformat(),
    }


def canonical(policy: Policy) -> Policy:
    """Return a policy in the one form that it is stored and compared in.

    Raises:
        InvalidPayload: a word, pattern, number or range in it makes no sense.
    """
    repositories = policy.repositories
    if policy.max_concurrency is not None and policy.max_concurrency < 1:
        raise InvalidPayload("maxConcurrency must be 1 or more")
    return Policy(
        types=_words("allowedJobTypes", policy.types),
        repositories=None
        if repositories is None
        else tuple(dict.fromkeys(repository_pattern(one.strip()) for one in repositories)),
        capabilities=_words("capabilities", policy.capabilities),
        queues=_words("queues", policy.queues),
        max_concurrency=policy.max_concurrency,
        ip_ranges=None
        if policy.ip_ranges is None
        else tuple(dict.fromkeys(_range(one.strip()) for one in policy.ip_ranges)),
    )


def stored(policy: Policy) -> dict[str, Any]:
    """Return a policy as JSON holds it."""
    return asdict(policy)


def read(values: dict[str, Any]) -> Policy:
    """Read back what ``stored`` made; an older version may not have known every field."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Policy(**fields)


def _words(name: str, values: Iterable[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    words = tuple(dict.fromkeys(value.strip() for value in values))
    if not all(0 < len(word) <= _WORD_MAX and not _UNSTORABLE.search(word) for word in words):
        raise InvalidPayload(f"{name} must be words of 1-{_WORD_MAX} characters")
    return words


def _range(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        # with a bit set behind the mask too: somebody meant another range
        raise InvalidPayload(
            "ipRanges must be addresses or CIDR ranges such as 10.0.0.0/8"
        ) from None
