"""The call log: its tables, the one writer, processing, queries and migrations.

It knows nothing of HTTP and calls no handlers.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection

from sqlalchemy import Connection, event, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageError
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from .call_ends import ReadEnds, RunsFor
from .change_feed import REFRESH, Change, ChangeFeed, OtherProcesses
from .dialects import describe, is_damage, upsert
from .health import Readiness, require_sound
from .migrations import migrate, open_database
from .processing import Processor
from .tables import calls, keys
from .writer import StorageObserver, Writer

logger = logging.getLogger("millis_hooks.call_log")

_DAMAGED = (
    "The call log was found damaged: {why}. Stop the service, move the file away together with its "
    "-wal and -shm, and put a backup in its place; `sqlite3 FILE .recover` may save what is newer"
)


class CallLog:
    """An open call log, its schema up to date. Raises `StorageError` if it cannot be had.

    `runs_for` says which handlers want an ended call, `hears_of_changes` whether the handler of a
    name is called again when a later end changes the call; `on_runs` is called, on a thread of the
    log, when runs for them have been written.
    """

    def __init__(
        self,
        url: str,
        *,
        runs_for: RunsFor = lambda call: (),
        hears_of_changes: Callable[[str], bool] = lambda name: False,
        on_runs: Callable[[], None] = lambda: None,
        own_numbers: frozenset[str] = frozenset(),
        mask: MaskPolicy = SECRETS_ALONE,
        observer: StorageObserver | None = None,
    ) -> None:
        self.database = open_database(url)
        try:
            migrate(self.database)
            require_sound(self.database)
        except BaseException:
            self.database.close()
            raise
        self._observer = observer or StorageObserver()
        self.writer = Writer(self.database.writer, on_stored=self._wake, observer=self._observer)
        self.feed = ChangeFeed()
        self.read_ends = ReadEnds()
        self.processor = Processor(
            self.database,
            self.writer,
            runs_for=runs_for,
            hears_of_changes=hears_of_changes,
            on_runs=on_runs,
            own_numbers=own_numbers,
            mask=mask,
            tell=self.feed.publish,
            read_ends=self.read_ends,
        )
        #: What was said when the file was first found damaged; it stays until a restart.
        self.damage: str | None = None
        event.listen(self.database.reader, "handle_error", self._count_error)
        for engine in (self.database.reader, self.database.writer):
            event.listen(engine, "handle_error", self._note_damage)
        self._other_processes = OtherProcesses(self.writer, self.feed)
        self._readiness = Readiness(self.writer)
        self.writer.start()
        self.processor.start()
        self._other_processes.start()

    def close(self) -> None:
        """Write what is waiting and close; what is not processed yet is at the next start."""
        self.feed.close()
        self._other_processes.close()
        self.processor.close()
        self.writer.close()
        self.database.close()

    def check(self) -> None:
        """Raise `StorageError` unless a delivery would be stored now, and the log is sound.

        Blocks a little.
        """
        if self.damage is not None:
            raise StorageError(_DAMAGED.format(why=self.damage))
        self._readiness.check()

    def tell_of_runs(self, call_ids: Collection[int]) -> None:
        """Tell who listens that runs of these calls began or ended."""
        if not call_ids or not self.feed.subscribers:
            return
        sessions = select(calls.c.session_id).where(calls.c.id.in_(call_ids))
        try:
            with self.database.reader.connect() as connection:
                changes = [Change("runs", each) for each in connection.scalars(sessions)]
        except SQLAlchemyError:
            changes = [REFRESH]
        self.feed.publish(changes)

    def key(self, name: str) -> bytes:
        """Return the key of this name, the same for every process on this log."""
        return self.writer.run(lambda connection: _key(connection, name))

    def _count_error(self, _context: object) -> None:
        self._observer.read_failed()

    def _note_damage(self, context: ExceptionContext) -> None:
        error = context.original_exception
        if self.damage is None and isinstance(error, Exception) and is_damage(error):
            self.damage = describe(error)
            logger.error(_DAMAGED.format(why=self.damage))

    def _wake(self) -> None:
        self.processor.wake()


def _key(connection: Connection, name: str) -> bytes:
    kept = select(keys.c.value).where(keys.c.name == name)
    found: bytes | None = connection.scalar(kept)
    if found is not None:
        return found
    new = upsert(connection, keys).values(name=name, value=secrets.token_bytes(32))
    connection.execute(new.on_conflict_do_nothing())
    made: bytes = connection.execute(kept).scalar_one()
    return made
