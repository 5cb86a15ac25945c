"""Statements that are made once and take lists: values to look for, rows to write.

Building a statement, or rendering one for so many values, takes longer than most databases take to
carry it out. So each is made once. Rows go to the driver as plain tuples: through its `executemany`
on SQLite, and as one array a column on PostgreSQL.
"""

from __future__ import annotations

import json
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    any_,
    bindparam,
    func,
    literal,
    null,
    select,
)
from sqlalchemy.types import UserDefinedType

from .dialects import POSTGRESQL, SQLITE, Either

#: One row, by column. All rows of a list have the same columns in the same order.
Columns = dict[str, Any]


class _Values(UserDefinedType[Sequence[Any]]):
    """A list as a parameter: an array of PostgreSQL, JSON for SQLite."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return list if dialect.name == POSTGRESQL else _as_json


def _as_json(values: Sequence[Any]) -> str:
    return json.dumps(list(values))


def among(column: ColumnElement[Any], of: str | Sequence[Any]) -> ColumnElement[bool]:
    """Say that a column is one of these values, or of those of the parameter of this name."""
    kind = _Values()
    values: Any = bindparam(of, type_=kind) if isinstance(of, str) else literal(of, kind)
    each = func.json_each(values).table_valued("value")
    return Either(sqlite=column.in_(select(each.c.value)), postgresql=column == any_(values))


def aside(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the column's value; SQLite, which knows little of how many rows a condition leaves,
    must not use its index."""
    return func.coalesce(column, null())


class Prepared:
    """A statement that is made once, and on SQLite goes to the driver as it is.

    The driver takes a tenth of the time of SQLAlchemy; errors are SQLAlchemy's.
    """

    def __init__(self, statement: Any) -> None:
        """Take a statement of SQLAlchemy; lists come as parameters of `among`."""
        self.statement = statement

    def __call__(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Carry it out and return its rows, if it has any."""
        if connection.dialect.name != SQLITE:
            result = connection.execute(self.statement, dict(parameters))
            return result.all() if result.returns_rows else ()
        if not connection.in_transaction():
            connection.begin()
        plain = _plain(self.statement, connection.dialect)
        try:
            return plain.rows(connection, parameters)
        except sqlite3.Error as error:
            # As its own cursors do; there is no public way. Listeners are told of the error, too.
            connection._handle_dbapi_exception(error, plain.text, None, None, None)


class _Plain(NamedTuple):
    """A statement as the driver takes it, with what its parameters and columns are made by."""

    text: str
    parameters: Sequence[tuple[str, Any, Callable[[Any], Any]]]
    columns: Sequence[tuple[int, Callable[[Any], Any]]]
    make: Callable[[Iterable[Any]], Any]

    def rows(self, connection: Connection, given: Mapping[str, Any]) -> Sequence[Any]:
        bound = [process(given.get(name, default)) for name, default, process in self.parameters]
        log: Any = connection.connection.dbapi_connection
        found = log.execute(self.text, bound).fetchall()
        if not found or not self.columns:
            return list(map(self.make, found))
        columns: list[Iterable[Any]] = list(zip(*found, strict=True))
        for place, process in self.columns:
            columns[place] = map(process, columns[place])
        return list(map(self.make, zip(*columns, strict=True)))


@cache
def _plain(statement: Any, dialect: Dialect) -> _Plain:
    made = statement.compile(dialect=dialect)
    processes = {
        name: bound.type.dialect_impl(dialect).bind_processor(dialect)
        for name, bound in made.binds.items()
    }
    parameters = [
        (name, made.params[name], processes.get(name) or _itself) for name in made.positiontup or ()
    ]
    columns = statement.exported_columns
    processors = (
        column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns
    )
    made_by = [(place, each) for place, each in enumerate(processors) if each is not None]
    return _Plain(str(made), parameters, made_by, _row_type("Row", columns.keys())._make)


#: Called by another name, as mypy reads literal names alone.
_row_type: Callable[[str, Sequence[str]], Any] = namedtuple


def _itself(value: Any) -> Any:
    return value


def insert_rows(connection: Connection, into: FromClause, rows: Sequence[Columns]) -> None:
    """Insert rows."""
    if rows:
        _write(connection, _inserting(connection.dialect, into, tuple(rows[0])), rows)


def update_rows(connection: Connection, table: FromClause, rows: Sequence[Columns]) -> None:
    """Set columns of stored rows, each found by the last of its columns."""
    if rows:
        _write(connection, _updating(connection.dialect, table, tuple(rows[0])), rows)


class _Statement(NamedTuple):
    """The text of a statement, and what makes the values of some columns fit for the driver."""

    text: str
    processors: Sequence[tuple[int, Callable[[Any], Any]]]
    takes_arrays: bool


def _write(connection: Connection, statement: _Statement, rows: Sequence[Columns]) -> None:
    values = [list(row.values()) for row in rows]
    for place, process in statement.processors:
        value = made = None
        for each in values:
            if each[place] is not value:  # rows of a call share their time
                value, made = each[place], process(each[place])
            each[place] = made
    if statement.takes_arrays:
        arrays = tuple(map(list, zip(*values, strict=True)))
        connection.exec_driver_sql(statement.text, arrays)
    else:
        connection.exec_driver_sql(statement.text, [tuple(each) for each in values])


@cache
def _inserting(dialect: Dialect, into: FromClause, names: tuple[str, ...]) -> _Statement:
    listed, table = ", ".join(names), _name(into)
    if dialect.name == POSTGRESQL:
        text = f"INSERT INTO {table} ({listed}) SELECT * FROM {_arrays(dialect, into, names)}"  # noqa: S608
    else:
        text = f"INSERT INTO {table} ({listed}) VALUES ({', '.join('?' for _ in names)})"  # noqa: S608
    return _Statement(text, _processors(dialect, into, names), dialect.name == POSTGRESQL)


@cache
def _updating(dialect: Dialect, into: FromClause, names: tuple[str, ...]) -> _Statement:
    *changed, key = names
    table = _name(into)
    if dialect.name == POSTGRESQL:
        changes = ", ".join(f"{name} = new.{name}" for name in changed)
        new = f"{_arrays(dialect, into, names)} AS new ({', '.join(names)})"
        text = f"UPDATE {table} SET {changes} FROM {new} WHERE {table}.{key} = new.{key}"  # noqa: S608
    else:
        changes = ", ".join(f"{name} = ?" for name in changed)
        text = f"UPDATE {table} SET {changes} WHERE {key} = ?"  # noqa: S608
    return _Statement(text, _processors(dialect, into, names), dialect.name == POSTGRESQL)


def _name(table: FromClause) -> str:
    name: str = table.name  # type: ignore[attr-defined]
    return name


def _arrays(dialect: Dialect, table: FromClause, names: Sequence[str]) -> str:
    types = (table.c[name].type.compile(dialect) for name in names)
    return f"unnest({', '.join(f'%b::{type_}[]' for type_ in types)})"


def _processors(
    dialect: Dialect, table: FromClause, names: Sequence[str]
) -> Sequence[tuple[int, Callable[[Any], Any]]]:
    types = (table.c[name].type.dialect_impl(dialect) for name in names)
    processors = (type_.bind_processor(dialect) for type_ in types)
    return [(place, process) for place, process in enumerate(processors) if process is not None]
