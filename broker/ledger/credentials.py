"""The only one to know how credentials are stored, proven and revoked."""

from __future__ import annotations

import dataclasses
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from broker import tokens
from broker.errors import (
    AuthFailed,
    InvalidPayload,
    LedgerUnavailable,
    TokenNotFound,
    Unavailable,
)
from broker.ledger.engine import Ledger
from broker.ledger.models import CredentialRow
from broker.ledger.remembered import FRESH_S, USED_EVERY_S, Known, Remembered
from broker.policy import Policy, repository_pattern
from broker.records import Credential

logger = logging.getLogger(__name__)

#: a note of use is not worth waiting for a writer
USED_PATIENCE_S: Final = 0.05
WORKER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_WORD_MAX: Final = 255
#: PostgreSQL refuses NUL, UTF-8 half of a pair
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_NO_DIGEST: Final = "0" * 64


class Credentials:
    """The tokens of one ledger; safe to share between threads.

    ``on_revoke`` tells the other processes at once, ``is_revoked`` asks whether they were told;
    both may raise ``Unavailable``, and then what the ledger says holds within ``FRESH_S``.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        on_revoke: Callable[[str], object] | None = None,
        is_revoked: Callable[[str], bool] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._on_revoke = on_revoke
        self._is_revoked = is_revoked
        self._remembered = Remembered(timer)

    def create(
        self,
        kind: str,
        *,
        worker_id: str | None = None,
        description: str | None = None,
        policy: Policy | None = None,
        expires_at: datetime | None = None,
        created_by: str | None = None,
        now: datetime,
    ) -> tuple[Credential, str]:
        """Store a new credential and return it with its token, which nobody can show again.

        Raises:
            InvalidPayload: a worker without a name, a name or policy on another kind, a policy or
                a moment that makes no sense.
        """
        _check_owner(kind, worker_id, policy)
        if expires_at is not None and expires_at <= now:
            raise InvalidPayload("expiresAt lies in the past")
        if description is not None and _UNSTORABLE.search(description):
            raise InvalidPayload("description holds what no database stores")
        issued = tokens.issue(kind)
        row = {
            "id": issued.id,
            "kind": kind,
            "secret_sha256": issued.secret_sha256,
            "worker_id": worker_id,
            "description": description,
            "policy": dataclasses.asdict(_canonical(policy or Policy())),
            "created_at": now,
            "created_by": created_by,
            "expires_at": expires_at,
        }
        with self._ledger.write() as connection:
            stored = connection.execute(sa.insert(CredentialRow).values(row).returning(*_COLUMNS))
            credential = _known(stored.one()).credential
        return credential, issued.text

    def list(self, *, kind: str | None = None, limit: int = 50) -> list[Credential]:
        """Return the newest credentials, revoked and expired ones too."""
        query = sa.select(*_COLUMNS).order_by(
            CredentialRow.created_at.desc(), CredentialRow.id.desc()
        )
        if kind is not None:
            query = query.where(CredentialRow.kind == kind)
        with self._ledger.read() as connection:
            return [_known(row).credential for row in connection.execute(query.limit(limit))]

    def revoke(self, token_id: str, *, kind: str | None = None, now: datetime) -> Credential:
        """End a credential for good; a repeat changes nothing and returns it as it is.

        Raises:
            TokenNotFound: no credential, or none of this kind, has this id.
        """
        if not tokens.ID.fullmatch(token_id):
            raise TokenNotFound
        with self._ledger.write() as connection:
            known = _select(connection, token_id)
            if known is None or kind not in {None, known.credential.kind}:
                raise TokenNotFound
            connection.execute(
                sa.update(CredentialRow)
                .where(CredentialRow.id == token_id, CredentialRow.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            known = _select(connection, token_id) or known
        self._remembered.forget(token_id)
        if self._on_revoke is not None:
            try:
                self._on_revoke(token_id)
            except Unavailable as error:
                logger.warning(
                    "revoked in the ledger alone; the edges follow within %.0f s: %s",
                    FRESH_S,
                    error,
                    extra={"action": "revoke", "token": token_id},
                )
        return known.credential

    def verify(self, text: str, *, now: datetime) -> Credential:
        """Return the credential that a token proves; ``stale`` when only memory vouches for it.

        Raises:
            AuthFailed: malformed, unknown, expired or revoked; the caller is not told which.
            LedgerUnavailable: the ledger is away and this process does not know the token.
        """
        parsed = tokens.parse(text)
        known = self._remembered.fresh(parsed.id)
        # A wrong secret costs the lookup that an unknown id costs, and the same comparison, so
        # that how long a refusal takes does not tell which ids exist.
        if known is None or not _proves(parsed, known):
            known = self._load(parsed.id, now)
        if not _proves(parsed, known) or known is None:
            raise AuthFailed
        credential = known.credential
        if credential.kind != parsed.kind or not _valid(credential, now):
            raise AuthFailed
        if self._revoked_elsewhere(parsed.id):
            self._remembered.forget(parsed.id)
            raise AuthFailed
        if not credential.stale and self._remembered.use_is_due(parsed.id):
            self._note_use(parsed.id, now)
        return credential

    def _load(self, token_id: str, now: datetime) -> Known | None:
        if not self._remembered.may_ask():
            return self._stale(token_id)
        try:
            with self._ledger.read() as connection:
                known = _select(connection, token_id)
        except LedgerUnavailable:
            self._remembered.ledger_away()
            return self._stale(token_id)
        valid = known is not None and _valid(known.credential, now)
        self._remembered.learn(token_id, known, valid=valid)
        return known

    def _stale(self, token_id: str) -> Known:
        known = self._remembered.stale(token_id)
        if known is None:
            raise LedgerUnavailable
        return known

    def _note_use(self, token_id: str, now: datetime) -> None:
        minute_ago = now - timedelta(seconds=USED_EVERY_S)
        used = CredentialRow.last_used_at
        try:
            with self._ledger.write(patience_s=USED_PATIENCE_S) as connection:
                connection.execute(
                    sa.update(CredentialRow)
                    .where(CredentialRow.id == token_id, (used <= minute_ago) | used.is_(None))
                    .values(last_used_at=now)
                )
        except LedgerUnavailable as error:
            logger.debug("use not noted: %s", error, extra={"token": token_id})

    def _revoked_elsewhere(self, token_id: str) -> bool:
        if self._is_revoked is None:
            return False
        try:
            return self._is_revoked(token_id)
        except Unavailable:
            return False


_COLUMNS: Final = tuple(CredentialRow.__table__.columns)


def _select(connection: sa.Connection, token_id: str) -> Known | None:
    row = connection.execute(sa.select(*_COLUMNS).where(CredentialRow.id == token_id)).one_or_none()
    return None if row is None else _known(row)


def _known(row: sa.Row[Any]) -> Known:
    values = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's own public name
    digest = values.pop("secret_sha256")
    policy: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.pop("policy").items()
    }
    return Known(Credential(policy=Policy(**policy), **values), digest)


def _proves(parsed: tokens.Parsed, known: Known | None) -> bool:
    stored = known.secret_sha256 if known else _NO_DIGEST
    return hmac.compare_digest(stored, parsed.secret_sha256)


def state(credential: Credential, now: datetime) -> str:
    """Name what a credential is at a moment: active, expired or revoked."""
    if credential.revoked_at is not None:
        return "revoked"
    expired = credential.expires_at is not None and now >= credential.expires_at
    return "expired" if expired else "active"


def _valid(credential: Credential, now: datetime) -> bool:
    return state(credential, now) == "active"


def _check_owner(kind: str, worker_id: str | None, policy: Policy | None) -> None:
    if kind not in tokens.KINDS.values():
        raise InvalidPayload("kind is worker, operator or producer")
    if kind == "worker":
        if worker_id is None or not WORKER_ID.fullmatch(worker_id):
            raise InvalidPayload("workerId must be 1-128 of letters, digits, dot, dash, underscore")
    elif worker_id is not None:
        raise InvalidPayload(f"a token of kind {kind} has no workerId")
    elif policy not in (None, Policy()):
        raise InvalidPayload(f"a token of kind {kind} has no policy")


def _canonical(policy: Policy) -> Policy:
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
    )


def _words(name: str, values: Iterable[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    words = tuple(dict.fromkeys(value.strip() for value in values))
    if not all(0 < len(word) <= _WORD_MAX for word in words):
        raise InvalidPayload(f"{name} must be words of 1-{_WORD_MAX} characters")
    return words
