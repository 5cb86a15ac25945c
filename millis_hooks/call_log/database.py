"""Opens the call log's database: where the file is made and how SQLite is set up.

SQLite runs in WAL mode with `synchronous=FULL`: NORMAL passes every kill test and still loses
acknowledged calls when the power goes (https://www.sqlite.org/wal.html#performance_considerations).
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import OperationalError

from ..exceptions import MillisHooksError, StorageOutageError
from .log_file import connect, create_private, require_same, schema_version, tell_of_loss
from .sqlstates import is_damage_state, is_lock_state, is_outage_state, said
from .write_lock import LockedConnection

#: How long anybody waits while another program has the file locked. Senders of webhooks wait about
#: as long; who gives up before us has still delivered if the lock goes in time.
BUSY_TIMEOUT_S = 10

#: Marks a connection that has read a damaged file.
_DISTRUSTED = "millis_hooks_distrusted"
_BEGIN_WRITING = "BEGIN IMMEDIATE"
_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
)


def is_file(url: str) -> bool:
    """Tell whether the call log of this URL is a file of this machine."""
    return url.startswith("sqlite:")


class Database:
    """Two ways into one file: `writer` for the one thread that writes, `reader` for everybody.

    `postgres.py` has the same for a server.
    """

    #: Whether it is a file of this machine.
    is_file = True

    def __init__(self, url: str) -> None:
        """Open the file, or make it.

        Raises `WrongFileError` for one that is damaged or not ours, and `StorageOutageError`.
        """
        self.url = make_url(url)
        self._path = Path(str(self.url.database)).resolve()
        tell_of_loss(self.path)
        self._file_id = create_private(self.path)
        self.schema_version()
        self.writer = self._engine(begin=_BEGIN_WRITING, pragmas=_PRAGMAS)
        self.reader = self._engine(begin="BEGIN", pragmas=(*_PRAGMAS, "PRAGMA query_only=ON"))

    @property
    def path(self) -> Path:
        """The file; raises `ConfigError` where there is none."""
        return self._path

    @property
    def runner_lock(self) -> Path:
        """The file that the one process that runs handlers has locked."""
        return Path(f"{self.path}-runner")

    def open_for_migration(self) -> Engine:
        """A writer that does not enforce foreign keys: rebuilding a parent table would otherwise
        delete its children."""
        return self._engine(begin=_BEGIN_WRITING, pragmas=(*_PRAGMAS, "PRAGMA foreign_keys=OFF"))

    def schema_version(self) -> str | None:
        """Return the version of the schema, None before there is one; raises as opening does."""
        return schema_version(self.path, busy_timeout_s=BUSY_TIMEOUT_S)

    def lock_for_migration(self, connection: Connection) -> None:
        """Wait until no other process migrates; BEGIN IMMEDIATE has seen to it."""

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()

    def _engine(self, *, begin: str, pragmas: tuple[str, ...]) -> Engine:
        engine = create_engine(
            self.url,
            creator=self._connect,
            hide_parameters=True,  # they are payloads, and exceptions end up in logs
        )

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
            if begin == _BEGIN_WRITING:
                require_same(self.path, self._file_id)
            if connection.info.pop(_DISTRUSTED, False):
                # What it read of a damaged file it would remember, also when the file is mended.
                connection.exec_driver_sql("PRAGMA shrink_memory")
            if begin == _BEGIN_WRITING:
                _lock(connection)
            connection.exec_driver_sql(begin)

        @event.listens_for(engine, "handle_error")
        def distrust(context: ExceptionContext) -> None:
            if context.connection is not None and is_damage(context.original_exception):
                context.connection.info[_DISTRUSTED] = True

        return engine

    def _connect(self) -> sqlite3.Connection:
        require_same(self.path, self._file_id)
        connection = connect(self.path, busy_timeout_s=BUSY_TIMEOUT_S)
        connection.lock_by(self.path)
        return connection


def _lock(connection: Connection) -> None:
    """Take the lock of those who write; the end of the transaction lets go of it."""
    log = connection.connection.driver_connection
    assert isinstance(log, LockedConnection)  # noqa: S101 - each is made by `_connect`
    try:
        log.lock(wait_s=BUSY_TIMEOUT_S)
    except sqlite3.OperationalError as error:
        raise OperationalError(_BEGIN_WRITING, None, error) from error
    except OSError as error:
        reason = f"The lock of the call log cannot be taken: {error.strerror}."
        raise StorageOutageError(reason) from error


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


#: What SQLite says, by its primary code, when the storage is to blame and not the statement.
_OUTAGES = frozenset(
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


def is_outage(error: Exception) -> bool:
    """Tell whether the storage is to blame: then anything else would have failed as well."""
    is_ours = isinstance(error, StorageOutageError) or _code(error) in _OUTAGES
    return is_ours or is_outage_state(error)


def is_locked(error: Exception) -> bool:
    """Tell whether another program had the call log locked for as long as we wait."""
    return _code(error) == sqlite3.SQLITE_BUSY or is_lock_state(error)


def is_damage(error: BaseException) -> bool:
    """Tell whether the file is damaged, or no database at all."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or is_damage_state(error)


def describe(error: Exception) -> str:
    """Say what the driver said, without the statement and its parameters: they hold payloads."""
    cause = getattr(error, "orig", error)
    if isinstance(cause, sqlite3.Error | MillisHooksError):
        return str(cause)
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return said(error) or type(error).__name__


def _code(error: BaseException) -> int | None:
    """Return SQLite's primary code, if the error is one of SQLite's."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
