"""One process at a time reads what another may have died of, so that nobody takes a delivery for
poison while it is being read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, Engine, func, select

from .database import Database
from .holder import FileHolder

#: Says whether it is this process's turn, for as long as it is entered; it ends with the process.
Turn: TypeAlias = Callable[[], AbstractContextManager[bool]]

#: Any number that no other program takes for its advisory locks.
_READING_LOCK = 7_203_145_113_262_077_932


def turns_on(database: Database) -> Turn:
    """Return how the processes on a call log take turns."""
    if database.is_file:
        holder = FileHolder(Path(f"{database.path}-reading"))
        return lambda: _with_file(holder)
    return lambda: _with_session(database.reader)


@contextmanager
def _with_file(holder: FileHolder) -> Iterator[bool]:
    is_ours = holder.hold()
    try:
        yield is_ours
    finally:
        if is_ours:
            holder.let_go()


@contextmanager
def _with_session(reader: Engine) -> Iterator[bool]:
    with reader.connect() as connection:
        yield _lock(connection)


def _lock(connection: Connection) -> bool:
    """Take the lock until the transaction ends, unless another session has it."""
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_READING_LOCK))))
