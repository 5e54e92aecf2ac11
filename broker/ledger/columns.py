"""How Python values lie in the columns of the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from broker.states import Status


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC, aware in Python; SQLite stores it naive, in an order that sorts."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Refuse naive moments: nobody knows what they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime has no place in the ledger")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Give the moment back in UTC, whatever the driver made of it."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(sa.types.TypeDecorator[Any]):
    r"""A JSON value as ASCII text, opaque to the database: PostgreSQL's own type refuses \u0000."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: sa.Dialect) -> str | None:
        """Write compact ASCII; None is SQL NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: str | None, _dialect: sa.Dialect) -> Any:
        """Read it back."""
        return None if value is None else json.loads(value)


class StatusText(sa.types.TypeDecorator[Status]):
    """A status by its value."""

    impl = sa.String(16)
    cache_ok = True

    def process_bind_param(self, value: Status | None, _dialect: sa.Dialect) -> str | None:
        """Write the word."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, _dialect: sa.Dialect) -> Status | None:
        """Read the word as its status."""
        return None if value is None else Status(value)
