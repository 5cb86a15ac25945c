"""Copies a live call log into another file, by SQLite's online backup.

One read transaction holds from the first page to the last. So the copy is the log as it was at the
beginning, with every call that was acknowledged by then, and no writer waits; until the end the
-wal file grows by what is written meanwhile. Ctrl-C ends it within a statement.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ...environment.private_files import make_private
from ...exceptions import ConfigError, StorageError
from ..database import Database

#: Instructions of SQLite between two looks for an interrupt.
_INSTRUCTIONS = 1_000_000


@contextmanager
def interruptible(connection: sqlite3.Connection) -> Iterator[None]:
    """Raise `KeyboardInterrupt` out of a statement too, not only once it is done."""
    # Python handles signals when it runs again, and SQLite ends at an exception in the handler.
    connection.set_progress_handler(lambda: 0, _INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


_PAGES_AT_ONCE = 512

#: Called with how many pages are copied, and how many there are.
Copied = Callable[[int, int], None]


def back_up(
    database: Database,
    target: Path,
    *,
    force: bool = False,
    copied: Copied = lambda done, total: None,
) -> int:
    """Copy the log to `target`, for its owner only, and return the copy's size in bytes.

    `target` is there once it is complete, checked and synced, or not at all; one that exists is
    only replaced with `force`. Raises `ConfigError` for a target that cannot be, and
    `StorageError`.
    """
    _require_free(database, target, force=force)
    _require_space(database, target.parent)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()
        make_private(part, must_be_new=True)
        _copy(database, part, copied)
        _check(part)
        _require_free(database, target, force=force)
        part.replace(target)
        _sync(target.parent)
        return target.stat().st_size
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"The call log could not be copied to {target}") from error
    finally:
        part.unlink(missing_ok=True)


def _require_free(database: Database, target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent}.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target} is not a file.")
    if target.exists() and target.samefile(database.path):
        raise ConfigError(f"{target} is the call log itself.")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists. Add --force to replace it.")
    # It would be taken for part of the copy.
    if Path(f"{target}-wal").exists():
        raise ConfigError(f"{target} is in use, or was not closed: there is a {target.name}-wal.")


def _require_space(database: Database, folder: Path) -> None:
    needed, free = database.path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(f"{needed:,} bytes are needed in {folder}, {free:,} are free there.")


def _copy(database: Database, part: Path, copied: Copied) -> None:
    with closing(database.reader.raw_connection()) as pooled, closing(sqlite3.connect(part)) as to:
        log = pooled.driver_connection
        assert isinstance(log, sqlite3.Connection)  # noqa: S101
        log.execute("BEGIN")
        try:
            log.execute("SELECT 1 FROM sqlite_master").fetchone()  # the transaction starts here
            log.backup(
                to,
                pages=_PAGES_AT_ONCE,
                progress=lambda _status, left, total: copied(total - left, total),
            )
        finally:
            log.execute("ROLLBACK")


def _check(part: Path) -> None:
    """Raise `StorageError` unless the copy is sound."""
    # Nobody else has it: opened as a file that never changes it gets no -wal beside it.
    uri = f"{part.resolve().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as copy, interruptible(copy):
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StorageError(f"The copy is not sound: {verdict}. See millis-hooks doctor.")


def _sync(folder: Path) -> None:
    """Sync the folder, that the new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
