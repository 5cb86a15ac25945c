"""Differences between SQLite and PostgreSQL that SQLAlchemy does not cover.

Errors of PostgreSQL are classified by SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html) and recognized by their attributes,
so that the driver is only imported for a call log in PostgreSQL.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

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


#: The storage is to blame, and not the statement. Classes: connection, credentials, resources,
#: operator's intervention, system error.
_OUTAGE_CLASSES = frozenset({"08", "28", "53", "57", "58"})
_READ_ONLY, _LOCKED, _NO_DATABASE = "25006", "55P03", "3D000"
_OUTAGES = frozenset({_READ_ONLY, _LOCKED, _NO_DATABASE})
_CANCELED = "57014"
_DAMAGED = frozenset({"XX001", "XX002"})
_CLASHES = frozenset({"40001", "40P01"})
#: A prepared statement is unknown, or there already: a pooler has changed the session.
_OTHER_SESSION = frozenset({"26000", "42P05"})
#: Wrong for as long as nobody changes it: not worth waiting for.
_STAY_WRONG = frozenset({"28", "3D"})


def sqlstate_of(error: BaseException) -> str | None:
    """Return the five characters; None for another error, and where no server said anything."""
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state if isinstance(state, str) else None


def is_outage_state(error: BaseException) -> bool:
    """Tell whether anything else would have failed as well."""
    state = sqlstate_of(error)
    if state is None:
        return _is_speechless(error)
    is_listed = state[:2] in _OUTAGE_CLASSES or state in _OUTAGES or state in _DAMAGED
    return is_listed and state != _CANCELED


def is_lock_state(error: BaseException) -> bool:
    """Tell whether somebody else had what is needed locked for as long as we wait."""
    return sqlstate_of(error) == _LOCKED


def is_damage_state(error: BaseException) -> bool:
    """Tell whether the server found its files damaged."""
    return sqlstate_of(error) in _DAMAGED


def is_worth_repeating(error: BaseException) -> bool:
    """Tell whether the same may succeed on a new connection, or once others are out of the way."""
    state = sqlstate_of(error) or ""
    is_passing = is_outage_state(error) and state[:2] not in _STAY_WRONG and state != _LOCKED
    return is_passing or state in _CLASHES or state in _OTHER_SESSION


def must_reconnect(error: BaseException) -> bool:
    """Tell whether another connection may lead to a server that can be written to."""
    return sqlstate_of(error) == _READ_ONLY


def is_of_another_session(error: BaseException) -> bool:
    """Tell whether there is a pooler that gives each transaction another session."""
    return sqlstate_of(error) in _OTHER_SESSION


def said(error: BaseException) -> str | None:
    """Return what the server or the driver said, if no value can stand in it."""
    cause: Any = getattr(error, "orig", error)
    if not is_outage_state(error):
        state = sqlstate_of(error)
        return f"{type(cause).__name__} (SQLSTATE {state})" if state else None
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return " ".join(str(primary or cause).split())


def _is_speechless(error: BaseException) -> bool:
    """Tell whether the connection was lost, or never made."""
    cause = getattr(error, "orig", None)
    if type(cause).__module__.partition(".")[0] != "psycopg":
        return False
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or type(cause).__name__ in ("OperationalError", "ConnectionTimeout")
