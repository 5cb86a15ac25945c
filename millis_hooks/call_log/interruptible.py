"""Statements that take long and that Ctrl-C should end all the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

#: Instructions of SQLite between two looks at whether somebody wants to end it.
_INSTRUCTIONS = 1_000_000


@contextmanager
def interruptible(connection: sqlite3.Connection) -> Iterator[None]:
    """Raise `KeyboardInterrupt` out of a statement too, not only once it is done."""
    # Signals are seen to whenever Python has its turn; SQLite then takes an exception for a wish.
    connection.set_progress_handler(lambda: 0, _INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise
    finally:
        connection.set_progress_handler(None, 0)
