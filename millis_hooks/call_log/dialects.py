"""What has to be said differently to SQLite and to PostgreSQL, beyond what SQLAlchemy knows of."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Table
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
