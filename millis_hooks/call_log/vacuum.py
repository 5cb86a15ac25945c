"""Writes the log's search index and then its file anew, without what deleted rows left in them.

Nobody else can write to the log meanwhile, and it takes twice its size of free disk for a time:
once for the copy, and once for the -wal file the copy goes through.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageError
from .database import BUSY_TIMEOUT_S, Database
from .erasure import PAGES_ALONE, empty_wal, rewrite_search_index
from .interruptible import interruptible
from .removal import writing_by
from .write_lock import LockedConnection


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes: of the file, of them unused, needed for a vacuum, and free on the disk."""

    file_bytes: int
    unused_bytes: int
    needed_bytes: int
    free_bytes: int


def space(database: Database) -> Space:
    """Tell what a vacuum would gain and what it needs; raises `ConfigError` where it is no file."""
    file = database.path
    with database.reader.connect() as connection:

        def pragma(name: str) -> int:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

        page_bytes = pragma("page_size")
        unused = pragma("freelist_count") * page_bytes
        used = pragma("page_count") * page_bytes - unused
    free = shutil.disk_usage(file.parent).free
    return Space(file.stat().st_size, unused, 2 * used, free)


def vacuum(database: Database) -> Space:
    """Rewrite index and file, and return what the file takes now.

    Raises `StorageError` if it cannot; nothing is lost then.
    """
    writer = database.writer
    try:
        for _ in rewrite_search_index(writing_by(writer), pages=PAGES_ALONE):
            pass
        _rewrite(writer, database.path.parent)
        empty_wal(writer)
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise StorageError("The call log could not be rewritten, and is as it was") from error
    return space(database)


def _rewrite(writer: Engine, folder: Path) -> None:
    with closing(writer.raw_connection()) as pooled:
        log = pooled.driver_connection
        assert isinstance(log, LockedConnection)  # noqa: S101
        # Our connections keep temporary tables in memory, others in /tmp, which may be memory too;
        # this one is as large as the log. The pragma is deprecated, and the only way to say so.
        log.execute("PRAGMA temp_store=FILE")
        log.execute(f"PRAGMA temp_store_directory={_quoted(str(folder))}")
        with interruptible(log), log.alone(wait_s=BUSY_TIMEOUT_S):
            log.execute("VACUUM")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
