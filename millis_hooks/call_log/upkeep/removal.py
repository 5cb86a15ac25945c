"""Removes sessions with everything stored under them, in small batches, and forgets people.

A call stays while its handlers are not done or one of its deliveries is not processed yet: it would
come back incomplete. What is forgotten is also erased: SQLite leaves deleted rows in the file until
their place is used again, its full-text index keeps their text until it is merged, and the -wal
file holds the pages as they were. A telephone number is compared by its digits, in whatever
spelling it is given or stored.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_plus

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    TableClause,
    and_,
    delete,
    exists,
    func,
    select,
    text,
)

from ...protocol.phones import digits_of
from ..changed_days import erase_totals_of, mark_days_of
from ..database import BUSY_TIMEOUT_S
from ..dialects import POSTGRESQL, is_locked, is_postgresql
from ..locks import LockedConnection
from ..missing_ends import forget_at_millis
from ..sanitize import clean_text
from ..search import call_search, matching_ids, terms_of
from ..tables import (
    IS_UNPARSED,
    call_metadata,
    call_results,
    calls,
    deliveries,
    handler_runs,
    inbox,
    metadata,
)
from ..writer import Write

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

#: What a batch should take beside a service at work: acknowledgements wait for it.
BATCH_S = 0.01
#: What it may take where there is none: the search index takes fewer large changes more easily.
BATCH_ALONE_S = 0.1
_FIRST_BATCH = 16
#: Most of what fewer would take is the sync, which they need in any case.
_LEAST_IN_BATCH = 8
_MOST_IN_BATCH = 512

_OPEN_STATES = ("pending", "running", "retrying")
_IS_WAITING = exists().where(inbox.c.delivery_id == deliveries.c.id)


class RemoveBatch(Protocol[T_contra]):
    """Removes one batch in the caller's transaction, or only counts what that would remove."""

    def __call__(self, connection: Connection, /, batch: Sequence[T_contra]) -> Removal: ...


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
            (self.deliveries, "webhook delivery", "webhook deliveries"),
            (self.runs, "handler run", "handler runs"),
        )
        parts = (
            f"{number:,} {one if number == 1 else many}" for number, one, many in counted if number
        )
        return ", ".join(parts) or "nothing"


def writing_by(engine: Engine) -> Write:
    """Return what writes without a `Writer`, where nothing else in this process writes."""

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


def remove_sessions(
    connection: Connection, batch: Sequence[str], *, only_count: bool = False
) -> Removal:
    """Remove sessions by their ids: calls with all that hangs on them, and every delivery."""
    remove = partial(_count if only_count else _delete, connection)
    busy = busy_sessions(connection, batch)
    going = [session_id for session_id in batch if session_id not in busy]
    call_ids = connection.scalars(select(calls.c.id).where(calls.c.session_id.in_(going))).all()
    if not only_count:
        mark_days_of(connection, call_ids)
        erase_totals_of(connection, call_ids)
    runs = remove(handler_runs, handler_runs.c.call_id.in_(call_ids))
    texts = remove(call_search, call_search.c.rowid.in_(call_ids))
    # A call refers to the delivery it was read from, so it goes first.
    remove(calls, calls.c.id.in_(call_ids))
    # A delivery that has just come in stays: it could not be processed any more.
    raw = remove(deliveries, and_(deliveries.c.session_id.in_(going), ~_IS_WAITING))
    return Removal(len(call_ids), raw, runs, texts, len(busy))


def remove_deliveries(
    connection: Connection, batch: Sequence[int], *, only_count: bool = False
) -> Removal:
    """Remove deliveries by their ids; those stay that a call was read from or that wait to be."""
    remove = partial(_count if only_count else _delete, connection)
    is_used = exists().where(calls.c.delivery_id == deliveries.c.id)
    waiting = select(func.count()).where(inbox.c.delivery_id.in_(batch))
    loose = and_(deliveries.c.id.in_(batch), ~_IS_WAITING, ~is_used)
    return Removal(deliveries=remove(deliveries, loose), kept=connection.scalar(waiting) or 0)


def _delete(connection: Connection, table: TableClause, where: ColumnElement[bool]) -> int:
    return connection.execute(delete(table).where(where)).rowcount


def _count(connection: Connection, table: TableClause, where: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(where)) or 0


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


def plan_removal(
    reader: Engine, session_ids: Iterator[str], delivery_ids: Iterator[int]
) -> Removal:
    """Count what would go with these sessions and lone deliveries."""
    count_sessions = partial(remove_sessions, only_count=True)
    count_deliveries = partial(remove_deliveries, only_count=True)
    return _counted(reader, count_sessions, session_ids) + _counted(
        reader, count_deliveries, delivery_ids
    )


def _counted(reader: Engine, count: RemoveBatch[T], items: Iterator[T]) -> Removal:
    total = Removal()
    while batch := list(islice(items, _MOST_IN_BATCH)):
        with reader.connect() as connection:
            total += count(connection, batch=batch)
    return total


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
    """Rewrite the search index without deleted rows, a number of pages at each step."""
    begins = -1  # a number below zero begins with everything there is
    while overwriting(write)(partial(_merge, pages=begins * pages)):
        yield
        begins = 1


def empty_wal(writer: Engine) -> bool:
    """Write the -wal file into the log and empty it; False while a connection still reads from it.

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
    """Merge this number of pages; tell whether there was anything left to merge."""
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


#: Fewer digits are not a telephone number, and stand in every other message.
MIN_DIGITS = 6
#: How many other sessions are named that speak of a number.
MENTIONS = 20
_READ_IDS = 5_000

_NUMBER = re.compile(r"\+?[\d\s()./-]+")
_BETWEEN = r"[\s()./-]{0,3}"


@dataclass(frozen=True, slots=True)
class Matches:
    """What is stored about a person: whole sessions, and deliveries that belong to none."""

    session_ids: tuple[str, ...] = ()
    delivery_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """When the first and the last of some calls were received."""

    first: datetime
    last: datetime


def span_of(reader: Engine, matches: Matches) -> Span | None:
    """Return when the matching calls were received; None if there is no call."""
    ids, received_at = iter(matches.session_ids), calls.c.received_at
    ends: list[datetime] = []
    while batch := list(islice(ids, _MOST_IN_BATCH)):
        query = select(func.min(received_at), func.max(received_at))
        with reader.connect() as connection:
            row = connection.execute(query.where(calls.c.session_id.in_(batch))).one()
        ends += [each for each in row if each is not None]
    return Span(min(ends), max(ends)) if ends else None


def is_number(who: str) -> bool:
    """Tell whether this is how a telephone number is written."""
    return _NUMBER.fullmatch(who.strip()) is not None and len(digits_of(who)) >= MIN_DIGITS


def find_session(reader: Engine, session_id: str) -> Matches:
    """Find what is stored under a session id; nothing if there is no such session."""
    cleaned = clean_text(session_id)
    called = select(calls.c.session_id).where(calls.c.session_id == cleaned)
    sent = select(deliveries.c.session_id).where(deliveries.c.session_id == cleaned)
    with reader.connect() as connection:
        return Matches(tuple({*connection.scalars(called), *connection.scalars(sent)}))


def find_number(reader: Engine, number: str) -> Matches:
    """Find the sessions from, to or with a number, and whatever names it.

    Prefetches name it in their query, calls in their metadata and results, and what could not be
    read anywhere.
    Reads the whole log, a part at a time.
    """
    digits = digits_of(number)
    spelled = _spelled(digits)
    sessions: set[str] = set()
    loose: set[int] = set()
    for row in _in_parts(reader, _CALLS, calls.c.id):
        if digits in map(digits_of, (row.from_phone, row.to_phone, row.customer_phone)):
            sessions.add(row.session_id)
    for row in _in_parts(reader, _METADATA, call_metadata.c.call_id):
        if spelled.search(row.value):
            sessions.add(row.session_id)
    for row in _in_parts(reader, _RESULTS, call_results.c.call_id):
        if spelled.search(row.text):
            sessions.add(row.session_id)
    for query, read in ((_QUERIES, unquote_plus), (_UNPARSED, _decoded)):
        for row in _in_parts(reader, query, deliveries.c.id):
            if spelled.search(read(row.text)):
                if row.session_id is None:
                    loose.add(row.id)
                else:
                    sessions.add(row.session_id)
    return Matches(tuple(sorted(sessions)), tuple(sorted(loose)))


def mentions(reader: Engine, number: str, matches: Matches) -> tuple[str, ...]:
    """Name other sessions in which the number was spoken of, or written; at most `MENTIONS`."""
    with_digits = matching_ids(terms_of(digits_of(number)))
    with_it = select(calls.c.session_id).where(calls.c.id.in_(with_digits))
    with reader.connect() as connection:
        named = connection.scalars(with_it.limit(MENTIONS + len(matches.session_ids)))
        return tuple(sorted(set(named) - set(matches.session_ids)))[:MENTIONS]


def plan_forgetting(reader: Engine, matches: Matches) -> Removal:
    """Count what `forget` would remove."""
    return plan_removal(reader, iter(matches.session_ids), iter(matches.delivery_ids))


def forget(write: Write, matches: Matches, *, batch_s: float = BATCH_S) -> Iterator[Removal]:
    """Remove the matches, a batch with each step of the iterator; what goes is overwritten.

    Raises what `write` raises.
    """
    write = overwriting(write)
    yield from in_batches(write, _forget_sessions, iter(matches.session_ids), batch_s=batch_s)
    yield from in_batches(write, remove_deliveries, iter(matches.delivery_ids), batch_s=batch_s)


def _forget_sessions(connection: Connection, batch: Sequence[str]) -> Removal:
    """Remove sessions, and see to it that those that went are not fetched from Millis again."""
    staying = busy_sessions(connection, batch)
    forget_at_millis(connection, [each for each in batch if each not in staying])
    return remove_sessions(connection, batch)


def _spelled(digits: str) -> re.Pattern[str]:
    """Match these digits and no more, with what people write between the digits of a number."""
    return re.compile(rf"(?<!\d){_BETWEEN.join(digits)}(?!\d)")


def _decoded(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _in_parts(reader: Engine, query: Select[Any], key: ColumnElement[int]) -> Iterator[Row[Any]]:
    """Return the rows in the order of `key`; nothing is held open for long."""
    with reader.connect() as connection:
        newest = connection.scalar(select(func.max(key))) or 0
    for before in range(0, newest, _READ_IDS):
        part = query.where(key > before, key <= before + _READ_IDS)
        with reader.connect() as connection:
            yield from connection.execution_options(yield_per=100).execute(part)


_CALLS = select(calls.c.session_id, calls.c.from_phone, calls.c.to_phone, calls.c.customer_phone)
_METADATA = select(calls.c.session_id, call_metadata.c.value).join(
    calls, calls.c.id == call_metadata.c.call_id
)
_RESULTS = (
    select(calls.c.session_id, call_results.c.text)
    .join(calls, calls.c.id == call_results.c.call_id)
    .where(call_results.c.text.is_not(None))
)
_SENT = select(deliveries.c.id, deliveries.c.session_id)
_QUERIES = _SENT.add_columns(deliveries.c.query.label("text")).where(
    deliveries.c.query.is_not(None)
)
_UNPARSED = _SENT.add_columns(deliveries.c.body.label("text")).where(IS_UNPARSED)
