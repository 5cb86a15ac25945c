"""Marks a call log as the unfinished copy of another, which no service may take for the whole."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.engine import URL

from ..exceptions import StorageError
from .database import Database
from .tables import keys

#: The key that holds what it is a copy of. It is no part of what is copied.
MARK = "unfinished copy of"


def name_of(database: Database) -> str:
    """Return the name of a call log, the same wherever it is called from, without any password."""
    url = database.url
    if database.is_file:
        return f"sqlite:///{database.path}"
    open_to_all = {key: value for key, value in url.query.items() if key != "password"}
    plain = URL.create("postgresql", None, None, url.host, url.port, url.database, open_to_all)
    return plain.render_as_string()


def origin_of(connection: Connection) -> str | None:
    """Return what this log is an unfinished copy of; None if it is whole."""
    marked: bytes | None = connection.scalar(select(keys.c.value).where(keys.c.name == MARK))
    return None if marked is None else marked.decode()


def mark(connection: Connection, origin: str) -> None:
    connection.execute(insert(keys).values(name=MARK, value=origin.encode()))


def unmark(connection: Connection) -> None:
    connection.execute(delete(keys).where(keys.c.name == MARK))


def require_whole(database: Database) -> None:
    """Raise `StorageError` for a copy that is not finished."""
    with database.reader.connect() as connection:
        origin = origin_of(connection)
    if origin is not None:
        raise StorageError(
            f"This call log is an unfinished copy of {origin}. Finish it: millis-hooks copy."
        )
