"""PostgreSQL by libpq alone: statements written once, sent together, read as plain rows.

What SQLAlchemy and psycopg's cursors do for each run of a statement cost several times what its
way to the server does. SQLAlchemy still writes its text and knows how values lie in columns,
psycopg still how they are written on the wire; the connection is theirs, and idle in between.
"""

from __future__ import annotations

import hashlib
import re
import select
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import psycopg
import sqlalchemy as sa
from psycopg import abc, pq
from psycopg.adapt import PyFormat, Transformer

Row = tuple[Any, ...]
#: names of the statements that a connection knows
Known = set[bytes]

#: PostgreSQL's number of the type that a Float is
_DOUBLE: Final = 701
_BIND: Final = re.compile(r"%\((\w+)\)s|%%")


class Prepared:
    """A statement as the server takes it, and how its values are written and read."""

    def __init__(self, statement: Any, dialect: sa.Dialect, returns: Sequence[Any]) -> None:
        """Write ``statement``, whose rows are of the columns that it ``returns``."""
        compiled = statement.compile(dialect=dialect)
        numbers: dict[str, int] = {}
        self.text = _BIND.sub(lambda found: _numbered(found[1], numbers), compiled.string)
        self.name = b"drawbridge_" + hashlib.sha256(self.text.encode()).hexdigest()[:32].encode()
        self._binds = [
            (name, compiled.params[name], _writer(compiled.binds[name].type, dialect))
            for name in numbers
        ]
        self._formats = [PyFormat.TEXT] * len(numbers)
        readers = [_reader(column.type, dialect) for column in returns]
        self._readers = [(at, read) for at, read in enumerate(readers) if read is not None]

    def write(self, given: Mapping[str, Any], adapt: abc.Transformer) -> Sequence[Any]:
        """Return the values of one run on the wire, in the order in which the text names them."""
        values = [
            given.get(name, fixed) if write is None else write(given.get(name, fixed))
            for name, fixed, write in self._binds
        ]
        return adapt.dump_sequence(values, self._formats)

    def read(self, result: pq.abc.PGresult, adapt: abc.Transformer) -> list[Row]:
        """Return the rows of a result as Python values."""
        adapt.set_pgresult(result)
        return [self._read(row) for row in adapt.load_rows(0, result.ntuples, list)]

    def _read(self, values: list[Any]) -> Row:
        for at, read in self._readers:
            if (value := values[at]) is not None:
                values[at] = read(value)
        return tuple(values)


class Call(NamedTuple):
    """One run of a statement."""

    statement: Prepared
    given: Mapping[str, Any]


def run(
    connection: psycopg.Connection[Any], known: Known, calls: Sequence[Call]
) -> list[list[Row]]:
    """Run statements as one transaction, in one way there and back; all that each returns.

    ``known`` belongs to the connection, which is in no transaction: the server makes one of what
    is sent at once.
    """
    try:
        return _run(connection, known, calls)
    except psycopg.errors.InvalidSqlStatementName:
        # After some rollbacks psycopg lets a server forget all statements, ours among them.
        known.clear()
        return _run(connection, known, calls)


def _run(
    connection: psycopg.Connection[Any], known: Known, calls: Sequence[Call]
) -> list[list[Row]]:
    server, adapt = connection.pgconn, Transformer(connection)
    for statement, _ in calls:
        if statement.name not in known:
            _prepare(server, statement)
            known.add(statement.name)
    sent = [(call.statement.name, call.statement.write(call.given, adapt)) for call in calls]
    results = [server.exec_prepared(*sent[0])] if len(sent) == 1 else _at_once(server, sent)
    # of several that which failed comes first; those behind it were not tried
    for result in results:
        _checked(result)
    return [call.statement.read(result, adapt) for call, result in zip(calls, results, strict=True)]


def _prepare(server: pq.abc.PGconn, statement: Prepared) -> None:
    """Have the server know a statement; its name is its text's, so one that is there is the same.

    Else a connection whose answer to this was not heard would refuse the statement for good.
    """
    try:
        _checked(server.prepare(statement.name, statement.text.encode()))
    except psycopg.errors.DuplicatePreparedStatement:
        return


def _at_once(
    server: pq.abc.PGconn, sent: Sequence[tuple[bytes, Sequence[Any]]]
) -> list[pq.abc.PGresult]:
    """Run statements in a pipeline, which is one transaction; the result of each."""
    try:
        server.enter_pipeline_mode()
        for name, values in sent:
            server.send_query_prepared(name, values)
        server.pipeline_sync()
        results = list(_results(server))
        server.exit_pipeline_mode()
    except BaseException:
        # Nobody knows what is still to come; whoever is next gets another connection.
        server.finish()
        raise
    return results


def _results(server: pq.abc.PGconn) -> Iterator[pq.abc.PGresult]:
    """Yield what the statements of a pipeline return, until all of them have."""
    poll = select.poll()
    poll.register(server.socket, select.POLLIN | select.POLLOUT)
    while server.flush():
        poll.poll()
        server.consume_input()
    poll.modify(server.socket, select.POLLIN)
    while True:
        while server.is_busy():
            poll.poll()
            server.consume_input()
        result = server.get_result()
        if result is None:  # the end of one of them
            if server.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection is lost")
        elif result.status == pq.ExecStatus.PIPELINE_SYNC:
            return
        else:
            yield result


def _checked(result: pq.abc.PGresult) -> None:
    if result.status not in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
        raise psycopg.errors.error_from_result(result)


def _numbered(name: str | None, numbers: dict[str, int]) -> str:
    return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"


def _writer(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Any:
    if isinstance(kind, sa.ARRAY):
        return _array
    return cast(Any, kind.dialect_impl(dialect)).bind_processor(dialect)


def _array(values: Sequence[str | None]) -> str:
    """Write an array of texts."""
    return "{" + ",".join("NULL" if one is None else _quoted(one) for one in values) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reader(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Any:
    # SQLAlchemy wants to know which of PostgreSQL's numbers comes
    code = _DOUBLE if isinstance(kind, sa.Float) else None
    return cast(Any, kind.dialect_impl(dialect)).result_processor(dialect, code)
