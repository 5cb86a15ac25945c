"""Opens the database of the call log, and creates and guards its file on SQLite.

SQLite runs in WAL mode with `synchronous=FULL`: NORMAL passes every kill test and still loses
acknowledged calls when the power goes (https://www.sqlite.org/wal.html#performance_considerations).
A file that is damaged, or that another program created, is left exactly as it is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from ..environment.private_files import keep_private, make_private
from ..exceptions import StorageOutageError, WrongFileError
from .dialects import SQLITE, describe, is_damage, is_worth_repeating
from .locks import LockedConnection

VERSION_TABLE = "millis_hooks_version"

_NO_DATABASE = (
    "{path} is not a call log: {why}. It was left as it is. "
    "Point MILLIS_HOOKS_DATABASE_URL at another file."
)
DAMAGED = (
    "The call log {path} is damaged: {why}. It was left as it is. Stop the service, move the file "
    "away together with its -wal and -shm, and put a backup in its place; "
    "`sqlite3 {path} .recover` may save what is newer."
)
_ORPHANED = (
    "{path} is empty, but {path}-wal holds calls of the file that was there. Put that file back, "
    "or move {path}-wal away to begin a new call log."
)

_NEW = "a new call log begins: %s %s. If there was a call log, stop the service and put it back"

logger = logging.getLogger("millis_hooks.call_log")


class FileId(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


def tell_of_loss(path: Path) -> None:
    """Write into the log that a new call log begins where there seems to have been another."""
    if path.exists():
        if path.stat().st_size == 0:
            logger.warning(_NEW, path, "was an empty file")
    elif any(Path(f"{path}-{trace}").exists() for trace in ("wal", "shm", "runner", "lock")):
        logger.warning(_NEW, path, "is gone, and files that were beside it are there")


def create_private(path: Path) -> FileId:
    """Make the file if there is none, readable by its owner only; SQLite gives its -wal and -shm
    the same mode. Raises `StorageOutageError` if it cannot be opened for writing."""
    try:
        for beside in ("-wal", "-shm"):
            keep_private(Path(f"{path}{beside}"))
        made = _file_id(make_private(path))
    except OSError as error:
        raise StorageOutageError(
            f"The call log {path} cannot be opened: {error.strerror}."
        ) from error
    require_writable_folder(path)
    return made


def require_writable_folder(path: Path) -> None:
    """Raise `StorageOutageError` unless this process may make files beside `path`.

    SQLite would say that the database is read-only, and name no folder.
    """
    if not os.access(path.parent, os.W_OK):
        raise StorageOutageError(
            f"The folder {path.parent} cannot be written, and SQLite makes files beside the call "
            f"log {path.name}. Let the user of this process write to the folder."
        )


def require_same(path: Path, opened: FileId) -> None:
    """Raise `StorageOutageError` unless `path` still names the file that was opened.

    Otherwise calls would go into a file that has no name any more. It is not opened again: what is
    left of the old one in the -wal would be taken for part of the new one.
    """
    try:
        is_same = _file_id(path.stat()) == opened
    except OSError:
        is_same = False
    if not is_same:
        raise StorageOutageError(
            f"{path} was moved away or replaced while it was in use. Put it back, or restart the "
            "service to go on with what is there now"
        )


def schema_version(path: Path, *, busy_timeout_s: float) -> str | None:
    """Return the version of the schema in the file; None if there is nothing in it yet.

    Raises `WrongFileError` for a file that is damaged or not ours, `StorageOutageError` for one
    that cannot be read now.
    """
    wal = Path(f"{path}-wal")
    if path.stat().st_size == 0 and wal.exists() and wal.stat().st_size > 0:
        raise WrongFileError(_ORPHANED.format(path=path))
    try:
        with closing(connect(path, busy_timeout_s=busy_timeout_s)) as connection:
            return _version_in(connection, path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise WrongFileError(_NO_DATABASE.format(path=path, why=error)) from error
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT:
            raise WrongFileError(DAMAGED.format(path=path, why=error)) from error
        raise StorageOutageError(f"The call log {path} cannot be read: {error}.") from error


def connect(path: Path, *, busy_timeout_s: float, mode: str = "rw") -> LockedConnection:
    """Open the file as it is; unlike SQLite by default, this never makes one."""
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_timeout_s,
        check_same_thread=False,  # the pool gives a connection to one thread at a time
        factory=LockedConnection,
    )


def _version_in(connection: sqlite3.Connection, path: Path) -> str | None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return None
    if VERSION_TABLE not in tables:
        why = "it is the database of another program"
        raise WrongFileError(_NO_DATABASE.format(path=path, why=why))
    versions = connection.execute("SELECT version_num FROM millis_hooks_version").fetchall()
    version = str(versions[0][0] or "").strip() if len(versions) == 1 else ""
    if not version:
        raise WrongFileError(DAMAGED.format(path=path, why="it has lost its version"))
    return version


def _file_id(status: os.stat_result) -> FileId:
    return FileId(status.st_dev, status.st_ino)


#: How long a transaction waits while another program has the file locked. Senders of webhooks wait
#: about as long; one that gives up earlier has still delivered if the lock goes in time.
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
    """Two ways into one file: `writer` for the one thread that writes, `reader` for all others.

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
                # What it read of a damaged file it would remember, also when the file is repaired.
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
    # The busy timeout does not cover this: when several processes open a new file at once, it is
    # locked for all but one, without any wait.
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


#: Between two tries of a transaction, in seconds.
_PAUSE_S = 0.1


class Transactions:
    """The transactions of one writer, repeated while the server of the database is gone.

    Where the connection is lost during COMMIT, it is unknown whether the transaction took place, so
    it may take place twice. That is harmless: a delivery stored twice is known by its hash, and a
    run that was claimed without an answer is taken back.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at_once = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._is_file = engine.dialect.name == SQLITE
        self._kept: Connection | None = None

    def close(self) -> None:
        """Give the connection back; the thread that ran the last transaction calls this."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def run(self, work: Callable[[Connection], object], *, is_one_statement: bool = False) -> None:
        """Return once what `work` did is synced; on PostgreSQL `work` may be called several times.

        There a statement alone commits itself, which saves two ways to the server and back.
        Raises `StorageOutageError` where the server was not to be had for `BUSY_TIMEOUT_S`.
        """
        if self._is_file:
            self._run_on_file(work)
            return
        engine = self._at_once if is_one_statement else self._engine
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                with engine.begin() as connection:
                    work(connection)
                return
            except SQLAlchemyError as error:
                if not is_worth_repeating(error):
                    raise
                if time.monotonic() >= deadline:
                    raise StorageOutageError(describe(error)) from error
            time.sleep(_PAUSE_S)

    def _run_on_file(self, work: Callable[[Connection], object]) -> None:
        """Keep the connection: to take one from the pool and to give it back costs twice as much as
        a transaction."""
        self._kept = self._kept or self._engine.connect()
        try:
            with self._kept.begin():
                work(self._kept)
        except BaseException:
            self.close()
            raise
