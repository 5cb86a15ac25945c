"""One process does the runs of a call log; the others stand by.

The lock of a file is held by the operating system, that of a database by its server. Either lets go
of it when the process dies, however it dies.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.database import Database

if TYPE_CHECKING:
    from filelock import FileLock

#: A lock of the server's is gone with its connection: so long it is taken to be there unasked.
_BELIEVED_S = 1.0


class Holder(Protocol):
    """Tries to be the one process that runs handlers."""

    @property
    def is_held(self) -> bool:
        """Whether this process is the one."""

    def hold(self) -> bool:
        """Become the one if nobody is; never waits."""

    def let_go(self) -> None:
        """Leave the place to another process."""


def holder_of(database: Database) -> Holder:
    """Return what holds the runs of this call log; it is not held yet."""
    if database.is_file:
        return FileHolder(database.runner_lock)
    from ..call_log.postgres import RUNNER_LOCK, PostgresDatabase

    assert isinstance(database, PostgresDatabase)  # noqa: S101 - there is no third kind
    return ServerHolder(database.open_for_lock(), RUNNER_LOCK)


class FileHolder:
    """Tries to be the one process that runs handlers."""

    def __init__(self, path: Path) -> None:
        """`path` is the lock file; it is made when needed, and stays."""
        self._path = path
        self._lock: FileLock | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process is the one."""
        return self._lock is not None and self._lock.is_locked

    def hold(self) -> bool:
        """Become the one if nobody is; never waits. Raises OSError if the file cannot be made."""
        from filelock import FileLock, Timeout

        if self._lock is None:
            # A lock of another kind would outlive a process that is killed.
            self._lock = FileLock(
                self._path,
                mode=0o600,
                thread_local=False,
                fallback_to_soft=False,
                preserve_lock_file=True,
            )
        if not self._lock.is_locked:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    def let_go(self) -> None:
        """Leave the place to another process."""
        if self._lock is not None:
            self._lock.release()


class ServerHolder:
    """Holds an advisory lock of PostgreSQL; may be asked from any thread."""

    def __init__(self, engine: Engine, key: int) -> None:
        """`engine` has no pool, so a connection ends when it is closed."""
        self._engine = engine
        self._key = key
        self._mutex = threading.Lock()
        self._session: Any = None
        self._asked_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether this process is the one, as far as is known for a second."""
        with self._mutex:
            if self._session is not None and time.monotonic() >= self._asked_at + _BELIEVED_S:
                self._ask("SELECT 1")
            return self._session is not None

    def hold(self) -> bool:
        """Become the one if nobody is; waits for nobody. False where the server is gone."""
        with self._mutex:
            if self._session is None:
                try:
                    self._session = self._engine.connect()
                except SQLAlchemyError:
                    return False
                if not self._ask(f"SELECT pg_try_advisory_lock({self._key})"):
                    self._drop()
            return self._session is not None

    def let_go(self) -> None:
        """Leave the place to another process."""
        with self._mutex:
            self._drop()

    def _ask(self, question: str) -> bool:
        try:
            answer = self._session.exec_driver_sql(question).scalar()
        except SQLAlchemyError:
            self._drop()
            return False
        self._asked_at = time.monotonic()
        return bool(answer)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
