"""The only one to know the table of credentials: its rows, and what each is at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from broker import tokens
from broker.credential import Credential
from broker.errors import TokenConflict, TokenNotFound
from broker.ledger import credential_rules as rules
from broker.ledger.models import CredentialRow
from broker.ledger.remembered import Known

COLUMNS: Final = tuple(CredentialRow.__table__.columns)


def select(connection: sa.Connection, token_id: str) -> Known | None:
    """Read a credential with what its secret hashes to."""
    row = connection.execute(sa.select(*COLUMNS).where(CredentialRow.id == token_id)).one_or_none()
    return None if row is None else known_of(row)


def get(connection: sa.Connection, token_id: str, kind: str | None) -> Credential:
    """Read a credential that is to be changed, and hold its row."""
    if not tokens.ID.fullmatch(token_id):
        raise TokenNotFound
    query = sa.select(*COLUMNS).where(CredentialRow.id == token_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or kind not in {None, row.kind}:
        raise TokenNotFound
    return known_of(row).credential


def newest(connection: sa.Connection, *, kind: str | None, limit: int) -> list[Credential]:
    """Read credentials, the newest first."""
    query = sa.select(*COLUMNS).order_by(CredentialRow.created_at.desc(), CredentialRow.id.desc())
    if kind is not None:
        query = query.where(CredentialRow.kind == kind)
    return [known_of(row).credential for row in connection.execute(query.limit(limit))]


def good_of(
    connection: sa.Connection, worker_ids: Sequence[str], now: datetime
) -> list[Credential]:
    """Read the credentials by which these workers may call now, the newest first."""
    good = (
        CredentialRow.worker_id.in_(worker_ids),
        CredentialRow.revoked_at.is_(None),
        CredentialRow.expires_at.is_(None) | (CredentialRow.expires_at > now),
    )
    order = (CredentialRow.created_at.desc(), CredentialRow.id.desc())
    query = sa.select(*COLUMNS).where(*good).order_by(*order)
    return [known_of(row).credential for row in connection.execute(query)]


def insert(connection: sa.Connection, new: dict[str, Any], now: datetime) -> tuple[Credential, str]:
    """Make a token and store what may be stored of it; returns its text too."""
    issued = tokens.issue(new["kind"])
    row = {**new, "id": issued.id, "secret_sha256": issued.secret_sha256, "created_at": now}
    stored = connection.execute(sa.insert(CredentialRow).values(row).returning(*COLUMNS))
    return known_of(stored.one()).credential, issued.text


def change(connection: sa.Connection, token_id: str, **values: Any) -> None:
    """Change a credential whose row is held."""
    connection.execute(sa.update(CredentialRow).where(CredentialRow.id == token_id).values(values))


def unused_successor(
    connection: sa.Connection, old: Credential, now: datetime
) -> Credential | None:
    """Return the token that an earlier rotation made, if it may be lost: nobody has used it."""
    if old.rotated_to is None:
        return None
    successor = get(connection, old.rotated_to, old.kind)
    if not valid(successor, now):
        return None
    if successor.last_used_at is not None:
        raise TokenConflict(f"This token was rotated into {successor.id}, which is in use")
    return successor


def state(credential: Credential, now: datetime) -> str:
    """Name what a credential is at a moment: active, expired or revoked."""
    if credential.revoked_at is not None:
        return "revoked"
    expired = credential.expires_at is not None and now >= credential.expires_at
    return "expired" if expired else "active"


def valid(credential: Credential, now: datetime) -> bool:
    """Tell whether a credential is good at a moment."""
    return state(credential, now) == "active"


def known_of(row: sa.Row[Any]) -> Known:
    """Make a credential of its row."""
    values = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's own public name
    digest = values.pop("secret_sha256")
    return Known(Credential(policy=rules.read(values.pop("policy")), **values), digest)
