"""Copies a whole call log into an empty one, on either kind of database.

The source is read in one state, and everything is written in one transaction, so a copy that
breaks leaves the target empty. Rows are copied as they are stored, with their ids, and the copy
never gives an id that the source has given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from ...exceptions import ConfigError, StorageError
from .. import tables
from ..database import Database
from ..dialects import describe, is_outage, is_postgresql
from ..raw_body import RawBytes

#: Rows by table.
Counts = dict[str, int]

#: Tells of the processes on a log, and not of its calls.
_NOT_COPIED = {"runners"}
#: Read at once; among bodies, any may have many megabytes.
_READ, _READ_BODIES = 200, 10
#: Written by one statement: the number of rows, or about the number of bytes.
_ROWS, _BYTES = 500, 2 * 1024 * 1024


def _as_stored() -> list[Table]:
    plain = MetaData()
    every = tables.metadata.sorted_tables
    copied = [table.to_metadata(plain) for table in every if table.name not in _NOT_COPIED]
    for table in copied:
        for column in table.columns:
            if isinstance(column.type, RawBytes):
                column.type = LargeBinary()
            elif isinstance(column.type, tables.Key):
                column.type = Text()
    rowid = Column("rowid", BigInteger, primary_key=True)
    return [
        *copied,
        Table("call_search", plain, rowid, Column("folded", Text)),
    ]


#: Rows that others refer to come before these.
COPIED = _as_stored()


def copy(source: Database, target: Database, show_done: Callable[[int], None]) -> Counts:
    """Make `target` a copy of `source`; `show_done` is called with the rows that are done.

    Raises `ConfigError` for a target with calls of its own, `StorageError` for a row that it
    refuses or a count that differs, and SQLAlchemy's errors.
    """
    with snapshot(source) as reading, target.writer.begin() as writing:
        _keep_open(writing)
        _empty(writing)
        done = 0
        for table in COPIED:
            for batch in _batches(_rows(reading, table)):
                _insert(writing, table, batch)
                done += len(batch)
                show_done(done)
        _give_ids_after(writing, _last_ids(reading))
        counts, copied = count_rows(reading), count_rows(writing)
        if differing := [name for name in counts if counts[name] != copied[name]]:
            raise StorageError(f"The copy has not every row of {', '.join(differing)}.")
    if not target.is_file:
        with target.writer.begin() as connection:
            connection.execute(text("ANALYZE"))  # it plans by what it knows of the tables
    return counts


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """Open the log as it is now, for as long as it takes."""
    with database.reader.connect() as connection:
        _keep_open(connection)
        connection.execute(select(tables.reconciled).limit(1))  # the state of the first statement
        yield connection


def count_rows(connection: Connection) -> Counts:
    """Count the rows to copy."""
    counting = {table.name: select(func.count()).select_from(table) for table in COPIED}
    return {name: connection.scalar(count) or 0 for name, count in counting.items()}


def _keep_open(connection: Connection) -> None:
    """Have the server wait for the next statement however long it takes."""
    if is_postgresql(connection):
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _empty(connection: Connection) -> None:
    """Remove what a service makes at its start; raise `ConfigError` if the log was in use."""
    for table in (tables.calls, tables.deliveries, tables.operators):
        if connection.execute(select(table).limit(1)).first() is not None:
            raise ConfigError(
                f"The call log to copy to has {table.name} of its own. A copy goes into an empty "
                "database."
            )
    for table in reversed(COPIED):
        connection.execute(delete(table))


def _rows(connection: Connection, table: Table) -> Iterator[Row[Any]]:
    fetched = _READ_BODIES if table.name == "deliveries" else _READ
    rows = select(table).order_by(*table.primary_key)
    with connection.execute(rows.execution_options(yield_per=fetched)) as result:
        yield from result


def _batches(rows: Iterable[Row[Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row._asdict())
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _insert(connection: Connection, table: Table, batch: list[dict[str, Any]]) -> None:
    """Insert rows; raise `StorageError` naming one that is refused."""
    try:
        with connection.begin_nested():
            connection.execute(insert(table), batch)
    except DBAPIError as error:
        if len(batch) > 1 and not is_outage(error):
            for row in batch:
                _insert(connection, table, [row])
        if is_outage(error):
            raise
        key = ", ".join(str(batch[0][column.name]) for column in table.primary_key)
        raise StorageError(
            f"The copy refuses the row {key} of {table.name}: {describe(error)}."
        ) from error


#: The tables whose ids are counted up, and never given twice.
_COUNTED = [
    table.name
    for table in tables.metadata.sorted_tables
    if table.dialect_options["sqlite"]["autoincrement"]
]


def _last_ids(connection: Connection) -> dict[str, int]:
    """Return the last id that was given away, by table."""
    if is_postgresql(connection):
        last_ids = " UNION ALL ".join(
            f"SELECT '{name}', last_value FROM {name}_id_seq WHERE is_called"  # noqa: S608
            for name in _COUNTED
        )
    else:
        last_ids = "SELECT name, seq FROM sqlite_sequence"
    return {name: last for name, last in connection.execute(text(last_ids)) if name in _COUNTED}


def _give_ids_after(connection: Connection, last_ids: dict[str, int]) -> None:
    """Have the next ids follow these."""
    for name, last in last_ids.items():
        if is_postgresql(connection):
            connection.execute(select(func.setval(f"{name}_id_seq", last)))
        else:
            values = {"name": name, "last": last}
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
            connection.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :last)"), values)
