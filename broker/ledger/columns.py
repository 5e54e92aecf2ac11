"""How Python values lie in the columns of the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

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


#: what ``just_after`` adds: the least that both databases can tell apart
TICK: Final = timedelta(microseconds=1)
#: how SQLite is given the function that it lacks
JUST_AFTER: Final = "drawbridge_just_after"


class just_after(sa.sql.functions.GenericFunction[datetime]):  # noqa: N801  a function of SQL
    """The moment after another one, so that two entries of a log never bear the same."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(just_after, "postgresql")
def _on_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)} + interval '1 microsecond')"


@compiles(just_after, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"{JUST_AFTER}({compiler.process(element.clauses, **options)})"


def just_after_text(moment: str) -> str:
    """Do the same to a moment as SQLite stores it."""
    return (datetime.fromisoformat(moment) + TICK).isoformat(" ", "microseconds")


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
