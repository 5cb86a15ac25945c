"""The call log's file: made private, told from the files of others, and watched while it is open.

A file that is damaged, or that another program made, is left exactly as it is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ..exceptions import StorageOutageError, WrongFileError
from ..private_files import keep_private, make_private
from .write_lock import LockedConnection

VERSION_TABLE = "millis_hooks_version"

_NO_DATABASE = (
    "{path} is no call log: {why}. It was left as it is. "
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

    Else calls would go into a file that nobody can find any more. It is not opened anew: what is
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
