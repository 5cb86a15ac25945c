"""A real call log in a temporary file, for tests of what writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Table, event, select

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.migrations import migrate, open_database
from millis_hooks.call_log.writer import Writer
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from support import databases

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)


def ended(
    session_id: str = "-s1", body: bytes | None = None, *, at: datetime = NOW, **columns: Any
) -> Delivery:
    """An end-of-call as it is stored; `body` is an ordinary one unless given."""
    return Delivery(
        kind="end_of_call",
        received_at=at,
        outcome=columns.pop("outcome", "stored"),
        status_code=200,
        session_id=session_id,
        body=end_of_call_body(session_id=session_id) if body is None else body,
        **columns,
    )


def prefetched(
    session_id: str = "-s1", query: str | None = None, *, at: datetime = NOW, **columns: Any
) -> Delivery:
    """A prefetch as it is recorded; `query` is an ordinary one unless given."""
    return Delivery(
        kind="prefetch",
        received_at=at,
        outcome=columns.pop("outcome", "fresh"),
        status_code=200,
        session_id=session_id,
        query=prefetch_query(session_id=session_id) if query is None else query,
        **columns,
    )


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    """An up-to-date database."""
    database = open_database(databases.made_in(folder))
    try:
        migrate(database)
        yield database
    finally:
        database.close()


@contextmanager
def writing(
    database: Database, *, on_stored: Callable[[], None] = lambda: None
) -> Iterator[Writer]:
    """A started writer; closing it twice does no harm."""
    writer = Writer(database.writer, on_stored=on_stored)
    writer.start()
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def held(writer: Writer) -> Iterator[None]:
    """Keep the writing thread busy: what comes meanwhile goes into one group."""
    began, go_on = threading.Event(), threading.Event()

    def wait(_connection: object) -> None:
        began.set()
        go_on.wait(10)

    thread = threading.Thread(target=writer.run, args=(wait,))
    thread.start()
    began.wait(10)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


def commits_of(database: Database) -> list[object]:
    """A list that grows by one with each commit."""
    commits: list[object] = []
    event.listen(database.writer, "commit", commits.append)
    return commits


def rows(database: Database, table: Table) -> list[Row[Any]]:
    """Every row of `table`, by primary key."""
    with database.reader.connect() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key.columns)))
