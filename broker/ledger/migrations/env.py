"""What alembic runs around the revisions; connection and transaction come from ``migrate``.

Revisions only go forward. What a newer one made may already hold promises that an older one has no
room for, so the way back is the backup taken before.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from alembic import context

from broker.ledger import upload_rows  # noqa: F401  its tables belong to Base
from broker.ledger.models import Base


def _plain(kind: str, item: object, _autogen: object) -> str | Literal[False]:
    """Write our column types as what they are to the database: a revision imports no models."""
    if kind == "type" and isinstance(item, sa.types.TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    render_item=_plain,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
