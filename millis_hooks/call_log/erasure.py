"""Sees to it that what was deleted is gone from the file too.

SQLite leaves deleted rows in the file until their place is used again, its full-text index keeps
what it had until it is merged, and the -wal file holds pages as they were.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, select, text

from .database import BUSY_TIMEOUT_S, is_locked
from .dialects import POSTGRESQL, is_postgresql
from .removal import Write
from .tables import metadata
from .write_lock import LockedConnection

T = TypeVar("T")

#: Pages of the search index, of about 4 KB, that are written in one transaction: beside a service
#: at work, and where there is none.
PAGES = 16
PAGES_ALONE = 256
#: What writers may have to wait, in milliseconds, while the -wal file waits for its readers.
_CHECKPOINT_WAIT_MS = 50


def overwriting(write: Write) -> Write:
    """Return what writes as `write` does, and overwrites with zeros what is deleted."""

    def overwrite(work: Callable[[Connection], T], /) -> T:
        def work_overwriting(connection: Connection) -> T:
            if not is_postgresql(connection):
                connection.exec_driver_sql("PRAGMA secure_delete=ON")
            return work(connection)

        return write(work_overwriting)

    return overwrite


def rewrite_search_index(write: Write, *, pages: int = PAGES) -> Iterator[None]:
    """Write the search index anew without what was deleted, so many pages at each step."""
    begins = -1  # a number below zero begins with everything there is
    while overwriting(write)(partial(_merge, pages=begins * pages)):
        yield
        begins = 1


def empty_wal(writer: Engine) -> bool:
    """Write the -wal file into the log and empty it; False while somebody still reads from it.

    PostgreSQL has no such file: there, deleted rows are taken out of the tables.
    """
    if writer.dialect.name == POSTGRESQL:
        _take_out_deleted(writer)
        return True
    with closing(writer.raw_connection()) as pooled:
        log = pooled.driver_connection
        assert isinstance(log, LockedConnection)  # noqa: S101
        try:
            with log.alone(wait_s=BUSY_TIMEOUT_S):
                return _checkpoint(log)
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            return False


def _checkpoint(log: LockedConnection) -> bool:
    usual_ms = log.execute("PRAGMA busy_timeout").fetchone()[0]
    log.execute(f"PRAGMA busy_timeout={_CHECKPOINT_WAIT_MS}")
    try:
        is_busy: int = log.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        log.execute(f"PRAGMA busy_timeout={usual_ms}")
    return not is_busy


def _take_out_deleted(writer: Engine) -> None:
    with writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM {', '.join(_TABLES)}, call_search")


def _merge(connection: Connection, *, pages: int) -> bool:
    """Merge so many pages; tell whether there was anything left to merge."""
    if is_postgresql(connection):
        return False
    changes = select(func.total_changes())
    before: int = connection.execute(changes).scalar_one()
    connection.execute(_MERGE, {"pages": pages})
    after: int = connection.execute(changes).scalar_one()
    # One change is the command itself: https://www.sqlite.org/fts5.html#the_merge_command
    return after - before >= 2


_TABLES = [table.name for table in metadata.sorted_tables]
_MERGE = text("INSERT INTO call_search (call_search, rank) VALUES ('merge', :pages)")
