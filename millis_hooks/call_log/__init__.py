"""Storage: the tables, the one writer, processing, queries and migrations.

Knows nothing of HTTP and nothing of handlers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import Connection, insert, select

from .database import Database
from .digest import RunsFor
from .migrations import migrate
from .processing import Processor
from .readiness import Readiness, require_sound
from .tables import keys
from .writer import Writer


class CallLog:
    """An open call log, its schema up to date. Raises `StorageError` if it cannot be had.

    `runs_for` says which handlers want an ended call; `on_runs` is called, on a thread of the log,
    when runs for them have been written.
    """

    def __init__(
        self,
        url: str,
        *,
        runs_for: RunsFor = lambda call: (),
        on_runs: Callable[[], None] = lambda: None,
        own_numbers: frozenset[str] = frozenset(),
    ) -> None:
        self.database = Database(url)
        try:
            migrate(self.database)
            require_sound(self.database)
        except BaseException:
            self.database.close()
            raise
        self.writer = Writer(self.database.writer, on_stored=self._wake)
        self.processor = Processor(
            self.database, self.writer, runs_for=runs_for, on_runs=on_runs, own_numbers=own_numbers
        )
        self._readiness = Readiness(self.writer)
        self.writer.start()
        self.processor.start()

    def close(self) -> None:
        """Write what is waiting and close; what is not processed yet is at the next start."""
        self.processor.close()
        self.writer.close()
        self.database.close()

    def check(self) -> None:
        """Raise `StorageError` unless a delivery would be stored now. Blocks a little."""
        self._readiness.check()

    def key(self, name: str) -> bytes:
        """Return the key of this name, the same for every process on this log."""
        return self.writer.run(lambda connection: _key(connection, name))

    def _wake(self) -> None:
        self.processor.wake()


def _key(connection: Connection, name: str) -> bytes:
    found: bytes | None = connection.scalar(select(keys.c.value).where(keys.c.name == name))
    if found is not None:
        return found
    made = secrets.token_bytes(32)
    connection.execute(insert(keys).values(name=name, value=made))
    return made
