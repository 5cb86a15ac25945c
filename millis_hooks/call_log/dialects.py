"""Differences between SQLite and PostgreSQL that SQLAlchemy does not cover, and their errors.

Errors of PostgreSQL are classified by SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html) and recognized by their attributes,
so that the driver is only imported for a call log in PostgreSQL.

Statements that take lists, of values to look for or of rows to write, are made once: building one,
or rendering it for so many values, takes longer than most databases take to carry it out. Rows go
to the driver as plain tuples: through its `executemany` on SQLite, and as one array a column on
PostgreSQL.
"""

from __future__ import annotations

import json
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Integer,
    LargeBinary,
    String,
    Table,
    any_,
    bindparam,
    case,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import UserDefinedType

from ..exceptions import MillisHooksError, StorageOutageError
from .raw_body import DIGITS, MARK

#: The name SQLAlchemy has for each.
SQLITE, POSTGRESQL = "sqlite", "postgresql"


class Either(ColumnElement[Any]):
    """An expression that is another one on each database."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy asks for it
        ("sqlite", InternalTraversal.dp_clauseelement),
        ("postgresql", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, *, sqlite: ColumnElement[Any], postgresql: ColumnElement[Any]) -> None:
        self.sqlite = sqlite
        self.postgresql = postgresql
        self.type = sqlite.type

    def self_group(self, against: Any = None) -> ColumnElement[Any]:
        return Either(
            sqlite=self.sqlite.self_group(against), postgresql=self.postgresql.self_group(against)
        )

    @property
    def _from_objects(self) -> list[FromClause]:
        return self.sqlite._from_objects


@compiles(Either, SQLITE)
def _on_sqlite(element: Either, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.sqlite, **options)


@compiles(Either, POSTGRESQL)
def _on_postgresql(element: Either, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.postgresql, **options)


def is_postgresql(connection: Connection) -> bool:
    """Tell which of the two is at the other end."""
    return connection.dialect.name == POSTGRESQL


def upsert(connection: Connection, into: Table) -> Any:
    """Return the `insert()` that has ON CONFLICT, which each dialect has of its own."""
    return upsert_on(connection.dialect.name, into)


def upsert_on(dialect: str, into: Table) -> Any:
    """Return it by the dialect's name; one that is not used is not imported, which takes time."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(into)


#: What SQLite says, by its primary code, when the storage is to blame and not the statement.
_SQLITE_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
_SQLITE_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
#: The same of PostgreSQL. Classes: connection, credentials, resources, operator's intervention,
#: system error.
_OUTAGE_CLASSES = frozenset({"08", "28", "53", "57", "58"})
_READ_ONLY, _LOCKED, _NO_DATABASE = "25006", "55P03", "3D000"
_DAMAGED = frozenset({"XX001", "XX002"})
_OUTAGES = frozenset({_READ_ONLY, _LOCKED, _NO_DATABASE, *_DAMAGED})
_CANCELED = "57014"
_CLASHES = frozenset({"40001", "40P01"})
#: A prepared statement is unknown, or there already: a pooler has changed the session.
_OTHER_SESSION = frozenset({"26000", "42P05"})
#: Wrong until a person changes it: not worth waiting for.
_STAY_WRONG = frozenset({"28", "3D"})


def is_outage(error: BaseException) -> bool:
    """Tell whether the storage is to blame: then anything else would have failed as well."""
    if isinstance(error, StorageOutageError) or _sqlite_code(error) in _SQLITE_OUTAGES:
        return True
    state = _sqlstate(error)
    return _is_connection_lost(error) if state is None else _is_outage_state(state)


def is_locked(error: BaseException) -> bool:
    """Tell whether another program had the call log locked for as long as we wait."""
    return _sqlite_code(error) == sqlite3.SQLITE_BUSY or _sqlstate(error) == _LOCKED


def is_damage(error: BaseException) -> bool:
    """Tell whether the file, or one of the server's, is damaged, or no database at all."""
    return _sqlite_code(error) in _SQLITE_DAMAGE or _sqlstate(error) in _DAMAGED


def is_worth_repeating(error: BaseException) -> bool:
    """Tell whether the same may succeed on a new connection to PostgreSQL, or once others are out
    of the way."""
    state = _sqlstate(error)
    if state is None:
        return _is_connection_lost(error)
    is_passing = _is_outage_state(state) and state[:2] not in _STAY_WRONG and state != _LOCKED
    return is_passing or state in _CLASHES or state in _OTHER_SESSION


def must_reconnect(error: BaseException) -> bool:
    """Tell whether another connection may lead to a server that can be written to."""
    return _sqlstate(error) == _READ_ONLY


def is_of_another_session(error: BaseException) -> bool:
    """Tell whether there is a pooler that gives each transaction another session."""
    return _sqlstate(error) in _OTHER_SESSION


def describe(error: BaseException) -> str:
    """Return what the database said, without the statement and its parameters: these are payloads.

    An error that may quote a value is described by its kind alone.
    """
    cause = getattr(error, "orig", error)
    if isinstance(cause, sqlite3.Error | MillisHooksError):
        return str(cause)
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    if is_outage(error):
        primary = getattr(getattr(cause, "diag", None), "message_primary", None)
        return " ".join(str(primary or cause).split())
    state = _sqlstate(error)
    return f"{type(cause).__name__} (SQLSTATE {state})" if state else type(error).__name__


def _sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary code, if the error is one of SQLite's."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _sqlstate(error: BaseException) -> str | None:
    """Return the five characters; None for another error, and where no server answered."""
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state if isinstance(state, str) else None


def _is_outage_state(state: str) -> bool:
    return (state[:2] in _OUTAGE_CLASSES or state in _OUTAGES) and state != _CANCELED


def _is_connection_lost(error: BaseException) -> bool:
    """Tell whether the connection to PostgreSQL was lost, or never made."""
    cause = getattr(error, "orig", None)
    if type(cause).__module__.partition(".")[0] != "psycopg":
        return False
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or type(cause).__name__ in ("OperationalError", "ConnectionTimeout")


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


def is_packed(column: ColumnElement[bytes]) -> ColumnElement[bool]:
    """Say of a column of `RawBytes` that it is packed."""
    return func.substr(_as_stored(column), 1, len(MARK)) == literal(MARK, LargeBinary)


def length_of(column: ColumnElement[bytes]) -> ColumnElement[int]:
    """Return the length of what was received, without reading all of it."""
    stored = _as_stored(column)
    digits = func.substr(stored, len(MARK) + 1, DIGITS)
    as_text = Either(sqlite=sql_cast(digits, String), postgresql=func.encode(digits, "escape"))
    told = sql_cast(as_text, Integer)
    return case((is_packed(column), told), else_=func.length(stored))


def _as_stored(column: ColumnElement[bytes]) -> ColumnElement[bytes]:
    return type_coerce(column, LargeBinary)
