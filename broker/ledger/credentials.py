"""The only one to know how credentials are stored, proven and revoked."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from broker import tokens
from broker.credential import Credential
from broker.errors import (
    AuthFailed,
    LedgerUnavailable,
    TokenConflict,
    Unavailable,
)
from broker.ledger import audit
from broker.ledger import credential_rows as rows
from broker.ledger import credential_rules as rules
from broker.ledger.audit import Act
from broker.ledger.engine import Ledger
from broker.ledger.models import CredentialRow
from broker.ledger.remembered import FRESH_S, USED_EVERY_S, Known, Remembered
from broker.policy import Policy

logger = logging.getLogger(__name__)

#: a note of use is not worth waiting for a writer
USED_PATIENCE_S: Final = 0.05
#: who is named in the audit when nobody said
_NOBODY: Final = "unknown"
_NO_DIGEST: Final = "0" * 64


class Credentials:
    """The tokens of one ledger; safe to share between threads.

    ``on_revoke`` tells the other processes at once, ``is_revoked`` asks whether they were told;
    both may raise ``Unavailable``, and then what the ledger says holds within ``FRESH_S``. It is
    asked at most once in ``TOLD_S`` for each credential.
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
        source: str | None = None,
        now: datetime,
    ) -> tuple[Credential, str]:
        """Store a new credential and return it with its token, which nobody can show again.

        Raises:
            InvalidPayload: a worker without a name, a name or policy on another kind, a policy or
                a moment that makes no sense.
        """
        rules.check_owner(kind, worker_id, policy)
        rules.check_expiry(expires_at, now)
        rules.check_description(description)
        new = {
            "kind": kind,
            "worker_id": worker_id,
            "description": description,
            "policy": rules.stored(rules.canonical(policy or Policy())),
            "created_by": created_by,
            "expires_at": expires_at,
        }
        with self._ledger.write() as connection:
            credential, text = rows.insert(connection, new, now)
            act = _act("token.create", created_by, source, credential.id, **rules.said(credential))
            audit.append(connection, act, now)
        return credential, text

    def list(self, *, kind: str | None = None, limit: int = 50) -> list[Credential]:
        """Return the newest credentials, revoked and expired ones too."""
        with self._ledger.read() as connection:
            return rows.newest(connection, kind=kind, limit=limit)

    def rotate(
        self,
        token_id: str,
        *,
        kind: str | None = None,
        overlap: timedelta,
        expires_at: datetime | None = None,
        rotated_by: str | None = None,
        source: str | None = None,
        now: datetime,
    ) -> tuple[Credential, str]:
        """Put a new token in the place of one that goes on being good for ``overlap``.

        Without ``expires_at`` the new one lives as long as the old one was meant to. Again, while
        nobody has used the new one: that one is revoked for another, so at most two are good.

        Raises:
            TokenNotFound: no credential, or none of this kind, has this id.
            TokenConflict: it is no longer good, or the new one is in use already.
            InvalidPayload: ``expires_at`` has passed.
        """
        rules.check_expiry(expires_at, now)
        with self._ledger.write() as connection:
            old = rows.get(connection, token_id, kind)
            if not rows.valid(old, now):
                raise TokenConflict(f"This token is {rows.state(old, now)}; create a new one")
            lost = rows.unused_successor(connection, old, now)
            # a rotation has shortened the old one's life: the new one's is what was meant
            meant = lost or old
            if expires_at is None and meant.expires_at is not None:
                expires_at = now + (meant.expires_at - meant.created_at)
            new = {
                "kind": old.kind,
                "worker_id": old.worker_id,
                "description": old.description,
                "policy": rules.stored(old.policy),
                "created_by": rotated_by,
                "expires_at": expires_at,
            }
            credential, text = rows.insert(connection, new, now)
            until = min(now + overlap, old.expires_at or now + overlap)
            rows.change(connection, old.id, expires_at=until, rotated_to=credential.id)
            if lost is not None:
                rows.change(connection, lost.id, revoked_at=now)
            said = rules.said(credential) | {"from": old.id, "until": until.isoformat()}
            said["revoked"] = None if lost is None else lost.id
            act = _act("token.rotate", rotated_by, source, credential.id, **said)
            audit.append(connection, act, now)
        self._tell(old.id, revoked=False)
        if lost is not None:
            self._tell(lost.id)
        return credential, text

    def allow(
        self,
        token_id: str,
        policy: Policy,
        *,
        changed_by: str | None = None,
        source: str | None = None,
        now: datetime,
    ) -> Credential:
        """Give a worker's credential another policy, which every edge follows within ``FRESH_S``.

        What its worker already holds it may finish; its next claim is judged by the new one.

        Raises:
            TokenNotFound: no worker's credential has this id.
            InvalidPayload: the policy makes no sense.
        """
        after = rules.stored(rules.canonical(policy))
        with self._ledger.write() as connection:
            old = rows.get(connection, token_id, "worker")
            rows.change(connection, token_id, policy=after)
            said = {"before": rules.stored(old.policy), "after": after}
            audit.append(connection, _act("token.allow", changed_by, source, token_id, **said), now)
            changed = rows.get(connection, token_id, "worker")
        self._tell(token_id, revoked=False)
        return changed

    def revoke(
        self,
        token_id: str,
        *,
        kind: str | None = None,
        revoked_by: str | None = None,
        source: str | None = None,
        now: datetime,
    ) -> Credential:
        """End a credential for good; a repeat changes nothing and returns it as it is.

        Raises:
            TokenNotFound: no credential, or none of this kind, has this id.
        """
        with self._ledger.write() as connection:
            old = rows.get(connection, token_id, kind)
            if old.revoked_at is None:
                rows.change(connection, token_id, revoked_at=now)
                said = {"kind": old.kind, "workerId": old.worker_id}
                act = _act("token.revoke", revoked_by, source, token_id, **said)
                audit.append(connection, act, now)
            credential = rows.get(connection, token_id, kind)
        self._tell(token_id)
        return credential

    def _tell(self, token_id: str, *, revoked: bool = True) -> None:
        """Believe nothing old of a credential any more, here and where a revocation is told."""
        self._remembered.forget(token_id)
        if not revoked or self._on_revoke is None:
            return
        try:
            self._on_revoke(token_id)
        except Unavailable as error:
            logger.warning(
                "revoked in the ledger alone; the edges follow within %.0f s: %s",
                FRESH_S,
                error,
                extra={"action": "revoke", "token": token_id},
            )

    def verify(self, text: str, *, now: datetime, again: bool = False) -> Credential:
        """Return the credential that a token proves; ``stale`` when only memory vouches for it.

        ``again`` is for a call that was let in before: its use was noted then.

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
            raise AuthFailed(why="unknown" if known is None else "secret", credential=parsed.id)
        credential = known.credential
        if credential.kind != parsed.kind:
            raise AuthFailed(why="kind", credential=parsed.id)
        if not rows.valid(credential, now):
            raise AuthFailed(why=rows.state(credential, now), credential=parsed.id)
        if self._revoked_elsewhere(parsed.id, stale=credential.stale):
            self._remembered.forget(parsed.id)
            raise AuthFailed(why="revoked", credential=parsed.id)
        if not (again or credential.stale) and self._remembered.use_is_due(parsed.id):
            self._note_use(parsed.id, now)
        return credential

    def _load(self, token_id: str, now: datetime) -> Known | None:
        if not self._remembered.may_ask():
            return self._stale(token_id)
        try:
            with self._ledger.glance() as connection:
                known = rows.select(connection, token_id)
        except LedgerUnavailable:
            self._remembered.ledger_away()
            return self._stale(token_id)
        valid = known is not None and rows.valid(known.credential, now)
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

    def _revoked_elsewhere(self, token_id: str, *, stale: bool) -> bool:
        # while the ledger is away nothing else tells of it
        if self._is_revoked is None or (self._remembered.unrevoked(token_id) and not stale):
            return False
        try:
            revoked = self._is_revoked(token_id)
        except Unavailable:
            return False
        if not revoked:
            self._remembered.note_unrevoked(token_id)
        return revoked


def _act(action: str, actor: str | None, source: str | None, token_id: str, **detail: Any) -> Act:
    return Act(action=action, actor=actor or _NOBODY, source=source, object=token_id, detail=detail)


def _proves(parsed: tokens.Parsed, known: Known | None) -> bool:
    stored = known.secret_sha256 if known else _NO_DIGEST
    return hmac.compare_digest(stored, parsed.secret_sha256)
