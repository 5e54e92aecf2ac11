"""PostgreSQL by its driver alone: statements written once, sent together, read as plain rows.

What SQLAlchemy does for each run of a statement, and each way to the server and back, cost more
than the statements of a claim. It still writes their text and knows how values lie in columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import psycopg
import sqlalchemy as sa

Row = tuple[Any, ...]

#: PostgreSQL's number of the type that a Float is
_DOUBLE: Final = 701
_BIND: Final = re.compile(r"%\((\w+)\)s|%%")


class Prepared:
    """A statement as the driver takes it, and how its values are written and read."""

    def __init__(self, statement: Any, dialect: sa.Dialect, returns: Sequence[Any]) -> None:
        """Write ``statement``, whose rows are of the columns that it ``returns``."""
        compiled = statement.compile(dialect=dialect)
        numbers: dict[str, int] = {}
        self.text = _BIND.sub(lambda found: _numbered(found[1], numbers), compiled.string)
        self._binds = [
            (name, compiled.params[name], _writer(compiled.binds[name].type, dialect))
            for name in numbers
        ]
        readers = [_reader(column.type, dialect) for column in returns]
        self._readers = [(at, read) for at, read in enumerate(readers) if read is not None]

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Return the values of one run, in the order in which the text names them."""
        return [
            given.get(name, fixed) if write is None else write(given.get(name, fixed))
            for name, fixed, write in self._binds
        ]

    def read(self, row: Row) -> Row:
        """Return a row as Python values."""
        values = list(row)
        for at, read in self._readers:
            values[at] = read(values[at])
        return tuple(values)


class Call(NamedTuple):
    """One run of a statement."""

    statement: Prepared
    given: Mapping[str, Any]


def run(connection: psycopg.Connection[Any], calls: Sequence[Call]) -> list[list[Row]]:
    """Run statements as one transaction, in one way there and back; all that each returns.

    The connection commits by itself: several in a pipeline are one transaction up to its end.
    """
    cursors: list[psycopg.RawCursor[Row]] = [psycopg.RawCursor(connection) for _ in calls]
    if len(calls) == 1:
        _execute(cursors[0], calls[0])
    else:
        with connection.pipeline():
            for cursor, call in zip(cursors, calls, strict=True):
                _execute(cursor, call)
    return [
        [call.statement.read(row) for row in cursor.fetchall()]
        for cursor, call in zip(cursors, calls, strict=True)
    ]


def _execute(cursor: psycopg.RawCursor[Row], call: Call) -> None:
    cursor.execute(call.statement.text.encode(), call.statement.values(call.given))


def _numbered(name: str | None, numbers: dict[str, int]) -> str:
    return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"


def _writer(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Any:
    return cast(Any, kind.dialect_impl(dialect)).bind_processor(dialect)


def _reader(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Any:
    # SQLAlchemy wants to know which of PostgreSQL's numbers comes
    code = _DOUBLE if isinstance(kind, sa.Float) else None
    return cast(Any, kind.dialect_impl(dialect)).result_processor(dialect, code)
