"""Differences between SQLite and PostgreSQL that SQLAlchemy does not cover, and their errors.

Errors of PostgreSQL are classified by SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html) and recognized by their attributes,
so that the driver is only imported for a call log in PostgreSQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Table,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from ..exceptions import MillisHooksError, StorageError, StorageOutageError

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


@contextmanager
def reading_errors(what: str = "call log") -> Iterator[None]:
    """Raise `StorageError` for an error of the database: what could not be read, and why."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(f"The {what} could not be read: {describe(error)}.") from error


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
