"""Locks of the operating system, held by one process at a time and released when it dies.

SQLite 3.7.0 to 3.51.2 has a bug (https://www.sqlite.org/wal.html#walresetbug): when one process
commits while another copies the -wal file into the database, the commit may be left out for good,
and the file be damaged. On such versions a transaction, and the checkpoint that its commit may
begin, happen under one lock that all our processes share.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..environment.private_files import make_private

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Version = tuple[int, ...]

_BUG_SINCE: Version = (3, 7, 0)
_MENDED: Version = (3, 51, 3)
_MENDED_BEFORE: tuple[Version, ...] = ((3, 44, 6), (3, 50, 7))

#: Between two tries, in seconds: a process that writes without pause lets go for a moment only.
_PAUSE_S = 0.001


def has_wal_reset_bug(version: Version = sqlite3.sqlite_version_info) -> bool:
    """Tell whether this release of SQLite has it."""
    backported = any(version[:2] == fix[:2] and version >= fix for fix in _MENDED_BEFORE)
    return _BUG_SINCE <= version < _MENDED and not backported


class LockedConnection(sqlite3.Connection):
    """A connection that holds the lock from `lock` to the end of its transaction.

    The system takes the lock back from a process that dies.
    """

    _path: Path | None = None
    _file: int | None = None
    _is_held = False

    def lock_by(self, log: Path) -> None:
        """Choose the lock of this call log. The file is made when it is needed, and stays."""
        self._path = Path(f"{log}-lock")

    def lock(self, *, wait_s: float) -> None:
        """Take the lock, if it is needed here or was by another process.

        Raises `sqlite3.OperationalError` as SQLite does, if it is not to be had for `wait_s`, and
        OSError if the file cannot be made.
        """
        if self._path is None or not (has_wal_reset_bug() or self._path.exists()):
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        deadline = time.monotonic() + wait_s
        while not _try_to_lock(self._file):
            if time.monotonic() >= deadline:
                raise _busy()
            time.sleep(_PAUSE_S)
        self._is_held = True

    def unlock(self) -> None:
        """Let go of the lock, unless a transaction is still open."""
        if self._is_held and self._file is not None and not self.in_transaction:
            self._is_held = False
            _unlock(self._file)

    @contextmanager
    def alone(self, *, wait_s: float) -> Iterator[None]:
        """Hold the lock for statements that are not a transaction."""
        self.lock(wait_s=wait_s)
        try:
            yield
        finally:
            self.unlock()

    def commit(self) -> None:
        try:
            super().commit()
        finally:
            self.unlock()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self.unlock()

    def close(self) -> None:
        super().close()
        file, self._file, self._is_held = self._file, None, False
        if file is not None:
            os.close(file)


def _busy() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


if sys.platform == "win32":

    def _try_to_lock(file: int) -> bool:
        try:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:

    def _try_to_lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


class FileHolder:
    """Tries to be the one process that holds a file."""

    def __init__(self, path: Path) -> None:
        """`path` is the lock file; it is made when needed, and stays."""
        self._path = path
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process is the one."""
        return self._file is not None

    def hold(self) -> bool:
        """Become the one, if no other is; never waits. Raises OSError if no file can be made."""
        if self._file is None:
            make_private(self._path)
            file = os.open(self._path, os.O_RDWR)
            if not _try_to_lock(file):
                os.close(file)
                return False
            self._file = file
        return True

    def let_go(self) -> None:
        """Leave the place to another process."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)  # ends the lock, too
