"""Opens the call log's database: where the file is made and how SQLite is set up.

SQLite runs in WAL mode with `synchronous=FULL`: NORMAL passes every kill test and still loses
acknowledged calls when the power goes (https://www.sqlite.org/wal.html#performance_considerations).
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL, Connection

from ..exceptions import StorageError

BUSY_TIMEOUT_S = 30

_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
)


class Database:
    """Two ways into one file: `writer` for the one thread that writes, `reader` for everybody."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        _create_private(self.url)
        self.writer = _engine(self.url, begin="BEGIN IMMEDIATE", pragmas=_PRAGMAS)
        self.reader = _engine(self.url, begin="BEGIN", pragmas=(*_PRAGMAS, "PRAGMA query_only=ON"))

    @property
    def runner_lock(self) -> Path:
        """The file that the one process that runs handlers has locked."""
        return Path(f"{self.url.database}-runner")

    def open_for_migration(self) -> Engine:
        """A writer that does not enforce foreign keys: rebuilding a parent table would otherwise
        delete its children."""
        return _engine(
            self.url, begin="BEGIN IMMEDIATE", pragmas=(*_PRAGMAS, "PRAGMA foreign_keys=OFF")
        )

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()


def _create_private(url: URL) -> None:
    """Make the file readable by its owner only; SQLite gives its -wal and -shm the same mode."""
    path = Path(str(url.database))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StorageError(f"The call log {path} cannot be opened: {error.strerror}.") from error


def _engine(url: URL, *, begin: str, pragmas: tuple[str, ...]) -> Engine:
    # Parameters are payloads, and exceptions end up in logs.
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def set_up(dbapi_connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself: it would begin them deferred, and a
        # deferred writer can fail with SQLITE_BUSY_SNAPSHOT, which ignores the busy timeout.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        _switch_to_wal(cursor)
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_explicitly(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _switch_to_wal(cursor: Any) -> None:
    # The busy timeout does not cover this: when several processes open a new file at once, all but
    # one are told that it is locked without any wait.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def describe(error: Exception) -> str:
    """Say what the driver said, without the statement and its parameters: they hold payloads."""
    return str(getattr(error, "orig", None) or type(error).__name__)
