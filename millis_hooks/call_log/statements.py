"""Statements that are made once and take lists: values to look for, rows to write.

Building a statement, or rendering one for so many values, takes longer than most databases take to
carry it out. So each is made once, and rows go to the driver as plain tuples: through its
`executemany` on SQLite, and as one array a column on PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
    select,
)
from sqlalchemy.types import UserDefinedType

from .dialects import POSTGRESQL, Either

#: One row, by column. All rows of a list have the same columns in the same order.
Columns = dict[str, Any]


class _Values(UserDefinedType[Sequence[Any]]):
    """A list as a parameter: an array of PostgreSQL, JSON for SQLite."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return list if dialect.name == POSTGRESQL else _as_json


def _as_json(values: Sequence[Any]) -> str:
    return json.dumps(list(values))


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Say that a column is one of the values of the parameter `name`: any number of them."""
    values: Any = bindparam(name, type_=_Values())
    each = func.json_each(values).table_valued("value")
    return Either(sqlite=column.in_(select(each.c.value)), postgresql=column == any_(values))


def insert_rows(connection: Connection, into: FromClause, rows: Sequence[Columns]) -> None:
    """Insert rows."""
    if rows:
        _write(connection, _inserting(connection.dialect, into, tuple(rows[0])), rows)


def update_rows(connection: Connection, table: FromClause, rows: Sequence[Columns]) -> None:
    """Set the columns of the rows that have their `id`."""
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
    """`id` is the last of the names."""
    *changed, id_ = names
    table = _name(into)
    if dialect.name == POSTGRESQL:
        changes = ", ".join(f"{name} = new.{name}" for name in changed)
        new = f"{_arrays(dialect, into, names)} AS new ({', '.join(names)})"
        text = f"UPDATE {table} SET {changes} FROM {new} WHERE {table}.{id_} = new.{id_}"  # noqa: S608
    else:
        changes = ", ".join(f"{name} = ?" for name in changed)
        text = f"UPDATE {table} SET {changes} WHERE {id_} = ?"  # noqa: S608
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
