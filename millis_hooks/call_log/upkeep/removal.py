"""Removes sessions with everything stored under them, in small batches, and erases them.

A call stays while its handlers are not done or one of its deliveries is not processed yet: it would
come back incomplete. SQLite leaves deleted rows in the file until their place is used again, its
full-text index keeps their text until it is merged, and the -wal file holds the pages as they were;
all three are erased.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Delete, Engine, delete, exists, func, select, text

from ..database import BUSY_TIMEOUT_S, is_locked
from ..dialects import POSTGRESQL, is_postgresql
from ..locks import LockedConnection
from ..search import call_search
from ..tables import calls, deliveries, handler_runs, inbox, metadata

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

#: What a batch should take beside a service at work: acknowledgements wait for it.
BATCH_S = 0.01
#: What it may take where there is none: the search index takes fewer large changes more easily.
BATCH_ALONE_S = 0.1
_FIRST_BATCH = 16
#: Most of what fewer would take is the sync, which they need all the same.
_LEAST_IN_BATCH = 8
_MOST_IN_BATCH = 512

_OPEN_STATES = ("pending", "running", "retrying")
_IS_WAITING = exists().where(inbox.c.delivery_id == deliveries.c.id)


class RemoveBatch(Protocol[T_contra]):
    """Removes one batch in the caller's transaction, or only counts what that would remove."""

    def __call__(self, connection: Connection, /, batch: Sequence[T_contra]) -> Removal: ...


class Write(Protocol):
    """Runs work in a transaction and returns its result once that is synced."""

    def __call__(self, work: Callable[[Connection], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes or has gone, in rows; `kept` are calls and lone deliveries that are not done."""

    calls: int = 0
    deliveries: int = 0
    runs: int = 0
    search_rows: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """How many rows of calls and deliveries it is about."""
        return self.calls + self.deliveries

    def __add__(self, other: Removal) -> Removal:
        return Removal(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        counted = (
            (self.calls, "call", "calls"),
            (self.deliveries, "delivery", "deliveries"),
            (self.runs, "run", "runs"),
            (self.search_rows, "search row", "search rows"),
        )
        told = (
            f"{number:,} {one if number == 1 else many}" for number, one, many in counted if number
        )
        return ", ".join(told) or "nothing"


def writing_by(engine: Engine) -> Write:
    """Return what writes without a `Writer`, where nobody else of this process does."""

    def write(work: Callable[[Connection], T], /) -> T:
        with engine.begin() as connection:
            return work(connection)

    return write


def in_batches(
    write: Write,
    remove: RemoveBatch[T],
    items: Iterator[T],
    *,
    batch_s: float = BATCH_S,
) -> Iterator[Removal]:
    """Remove `items` a batch at a time, each in a transaction of about `batch_s` seconds.

    Between two batches it is the caller's to rest.
    """
    size = _FIRST_BATCH
    while batch := list(islice(items, size)):
        began = time.perf_counter()
        removed = write(partial(remove, batch=batch))
        size = _next_size(size, time.perf_counter() - began, batch_s)
        yield removed


def _next_size(size: int, took_s: float, batch_s: float) -> int:
    if took_s > batch_s:
        return max(size // 2, _LEAST_IN_BATCH)
    return min(size * 2, _MOST_IN_BATCH) if took_s < batch_s / 2 else size


def remove_sessions(connection: Connection, batch: Sequence[str]) -> Removal:
    """Remove sessions by their ids: calls with all that hangs on them, and every delivery."""
    busy = busy_sessions(connection, batch)
    going = [session_id for session_id in batch if session_id not in busy]
    call_ids = connection.scalars(select(calls.c.id).where(calls.c.session_id.in_(going))).all()

    def remove(rows: Delete) -> int:
        return connection.execute(rows).rowcount

    runs = remove(delete(handler_runs).where(handler_runs.c.call_id.in_(call_ids)))
    texts = remove(delete(call_search).where(call_search.c.rowid.in_(call_ids)))
    # A call refers to the delivery it was read from, so it goes first.
    connection.execute(delete(calls).where(calls.c.id.in_(call_ids)))
    # What has just come in stays, as there is nobody to process what is gone.
    raw = remove(delete(deliveries).where(deliveries.c.session_id.in_(going), ~_IS_WAITING))
    return Removal(len(call_ids), raw, runs, texts, len(busy))


def remove_deliveries(connection: Connection, batch: Sequence[int]) -> Removal:
    """Remove deliveries by their ids; those stay that a call was read from or that wait to be."""
    is_used = exists().where(calls.c.delivery_id == deliveries.c.id)
    loose = delete(deliveries).where(deliveries.c.id.in_(batch), ~_IS_WAITING, ~is_used)
    return Removal(deliveries=connection.execute(loose).rowcount, kept=_waiting(connection, batch))


def busy_sessions(connection: Connection, session_ids: Sequence[str]) -> set[str]:
    """Return those of the sessions that are not done, and have to stay."""
    running = (
        select(calls.c.session_id)
        .join(handler_runs, handler_runs.c.call_id == calls.c.id)
        .where(calls.c.session_id.in_(session_ids), handler_runs.c.state.in_(_OPEN_STATES))
    )
    waiting = select(deliveries.c.session_id).where(
        deliveries.c.session_id.in_(session_ids), _IS_WAITING
    )
    return {*connection.scalars(running), *connection.scalars(waiting)}


def planned(reader: Engine, survey: RemoveBatch[T], items: Iterator[T]) -> Removal:
    """Add up what `survey` counts, reading a stretch at a time."""
    total = Removal()
    while some := list(islice(items, _MOST_IN_BATCH)):
        with reader.connect() as connection:
            total += survey(connection, batch=some)
    return total


def survey_sessions(connection: Connection, batch: Sequence[str]) -> Removal:
    """Count what `remove_sessions` would remove."""
    busy = busy_sessions(connection, batch)
    going = [session_id for session_id in batch if session_id not in busy]
    of_calls = select(calls.c.id).where(calls.c.session_id.in_(going))
    counted = (
        select(func.count()).select_from(of_calls.subquery()),
        select(func.count()).where(deliveries.c.session_id.in_(going)),
        select(func.count()).where(handler_runs.c.call_id.in_(of_calls)),
        select(func.count()).where(call_search.c.rowid.in_(of_calls)),
    )
    calls_, deliveries_, runs, search_rows = (connection.scalar(each) or 0 for each in counted)
    return Removal(calls_, deliveries_, runs, search_rows, len(busy))


def survey_deliveries(connection: Connection, batch: Sequence[int]) -> Removal:
    """Count what `remove_deliveries` would remove."""
    waiting = _waiting(connection, batch)
    return Removal(deliveries=len(batch) - waiting, kept=waiting)


def _waiting(connection: Connection, delivery_ids: Sequence[int]) -> int:
    in_inbox = select(func.count()).where(inbox.c.delivery_id.in_(delivery_ids))
    return connection.scalar(in_inbox) or 0


#: Pages of the search index, of about 4 KB, that are written in one transaction: beside a service
#: at work, and where there is none.
PAGES = 16
PAGES_ALONE = 256
#: What writers may have to wait, in milliseconds, while the -wal file waits for its readers.
_CHECKPOINT_WAIT_MS = 50


def overwriting(write: Write) -> Write:
    """Return what writes as `write` does, and overwrites with zeros what is deleted."""

    def overwrite(work: Callable[[Connection], T], /) -> T:
        def work_overwriting(connection: Connection) -> T:
            if not is_postgresql(connection):
                connection.exec_driver_sql("PRAGMA secure_delete=ON")
            return work(connection)

        return write(work_overwriting)

    return overwrite


def rewrite_search_index(write: Write, *, pages: int = PAGES) -> Iterator[None]:
    """Write the search index anew without what was deleted, so many pages at each step."""
    begins = -1  # a number below zero begins with everything there is
    while overwriting(write)(partial(_merge, pages=begins * pages)):
        yield
        begins = 1


def empty_wal(writer: Engine) -> bool:
    """Write the -wal file into the log and empty it; False while somebody still reads from it.

    PostgreSQL has no such file: there, deleted rows are taken out of the tables.
    """
    if writer.dialect.name == POSTGRESQL:
        _take_out_deleted(writer)
        return True
    with closing(writer.raw_connection()) as pooled:
        log = pooled.driver_connection
        assert isinstance(log, LockedConnection)  # noqa: S101
        try:
            with log.alone(wait_s=BUSY_TIMEOUT_S):
                return _checkpoint(log)
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            return False


def _checkpoint(log: LockedConnection) -> bool:
    usual_ms = log.execute("PRAGMA busy_timeout").fetchone()[0]
    log.execute(f"PRAGMA busy_timeout={_CHECKPOINT_WAIT_MS}")
    try:
        is_busy: int = log.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        log.execute(f"PRAGMA busy_timeout={usual_ms}")
    return not is_busy


def _take_out_deleted(writer: Engine) -> None:
    with writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM {', '.join(_TABLES)}, call_search")


def _merge(connection: Connection, *, pages: int) -> bool:
    """Merge so many pages; tell whether there was anything left to merge."""
    if is_postgresql(connection):
        return False
    changes = select(func.total_changes())
    before: int = connection.execute(changes).scalar_one()
    connection.execute(_MERGE, {"pages": pages})
    after: int = connection.execute(changes).scalar_one()
    # One change is the command itself: https://www.sqlite.org/fts5.html#the_merge_command
    return after - before >= 2


_TABLES = [table.name for table in metadata.sorted_tables]
_MERGE = text("INSERT INTO call_search (call_search, rank) VALUES ('merge', :pages)")
